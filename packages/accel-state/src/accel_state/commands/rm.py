"""``accel checkpoint rm``."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from accel_core.errors import CheckpointError

from . import show
from .found import Found, Shelf, shelf_of


def run(arguments: Namespace) -> int:
    """Remove what was named, or what is older than what is kept; return 1 when the answer was no."""
    chosen = _chosen(arguments)
    if not chosen:
        print("Nothing to remove")
        return 0
    if not arguments.force:
        _keep_a_good_one(chosen)
    found = [shelf.look(each, "sizes") for shelf, each in chosen]
    print("\n".join(_shown(found)))
    if arguments.dry_run:
        return 0
    if not arguments.yes and not _agreed(found):
        print("Nothing was removed")
        return 1
    for shelf, each in chosen:
        shelf.remove(each)
    print(f"Removed {len(chosen)}")
    return 0


def _chosen(arguments: Namespace) -> list[tuple[Shelf, Any]]:
    """Return what is to go, each once. All paths are looked up before the first is removed."""
    found: dict[str, tuple[Shelf, Any]] = {}
    for path in arguments.paths:
        shelf = shelf_of(path)
        those = shelf.surplus(path, arguments.keep) if arguments.keep else [shelf.one(path)]
        found |= {str(each.path): (shelf, each) for each in those}
    return list(found.values())


def _keep_a_good_one(chosen: list[tuple[Shelf, Any]]) -> None:
    """Raise CheckpointError when a folder that has a good checkpoint would have none."""
    gone = {str(each.path) for _, each in chosen}
    looked: set[str] = set()
    for shelf, first in chosen:
        if str(first.path) in looked:
            continue
        newest_first = shelf.beside(first)[::-1]
        looked |= {str(each.path) for each in newest_first}
        # By hash: what has the right size may still be damaged.
        ordered = sorted(newest_first, key=lambda each: str(each.path) in gone)
        good = next((each for each in ordered if shelf.look(each, "hashes").good), None)
        if good is not None and str(good.path) in gone:
            found = shelf.look(good, "sizes")
            raise CheckpointError(
                f"{found.name} is the last good checkpoint there; nothing was removed",
                where=found.path,
                fix="leave it out, or add --force",
            )


def _shown(found: list[Found]) -> list[str]:
    titles = ("REMOVE", "STEP", "SIZE", "AGE")
    rows = [
        (
            show.plain(each.path),
            "-" if each.step is None else str(each.step),
            show.size(each.size),
            show.age(each.time),
        )
        for each in found
    ]
    return show.table(titles, rows, [()] * len(rows), show.width())


def _agreed(found: list[Found]) -> bool:
    if not sys.stdin.isatty():
        raise CheckpointError("There is nobody to ask; nothing was removed", fix="add --yes")
    total = show.size(sum(each.size or 0 for each in found))
    what = "this checkpoint" if len(found) == 1 else f"these {len(found)} checkpoints"
    try:
        answer = input(f"Remove {what} ({total})? [y/N] ")
    except EOFError:
        return False
    return answer.strip().lower() in {"y", "yes"}


__all__ = ["run"]
