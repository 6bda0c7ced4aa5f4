"""``accel checkpoint rm``."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from accel_core.errors import CheckpointError

from ..checkpoint.files import Files
from ..checkpoint.listing import Listed, checkpoints
from ..checkpoint.located import remove
from ..checkpoint.rotation import surplus
from . import show
from .found import Found, look, one


def run(arguments: Namespace) -> int:
    """Remove what was named, or what is older than what is kept; return 1 when the answer was no."""
    chosen = _older(arguments) if arguments.keep else _named(arguments.paths)
    if not chosen:
        print("Nothing to remove")
        return 0
    if not arguments.force:
        _keep_a_good_one(chosen)
    found = [look(each, "sizes") for each in chosen]
    print("\n".join(_shown(found)))
    if arguments.dry_run:
        return 0
    if not arguments.yes and not _agreed(found):
        print("Nothing was removed")
        return 1
    files = Files()
    for each in chosen:
        remove(files, each.path)
    print(f"Removed {len(chosen)}")
    return 0


def _named(paths: Iterable[str]) -> list[Listed]:
    return list({each.path: each for each in map(one, paths)}.values())


def _older(arguments: Namespace) -> list[Listed]:
    chosen = []
    for path in arguments.paths:
        folder = Path(path)
        if not folder.is_dir():
            raise CheckpointError(
                f"There is no folder {path}", fix="name the folder that holds the checkpoints"
            )
        found = checkpoints(folder)
        gone = set(surplus(found, arguments.keep))
        chosen += [each for each in found if each.path in gone]
    return chosen


def _keep_a_good_one(chosen: list[Listed]) -> None:
    """Raise CheckpointError when a folder that has a good checkpoint would have none."""
    gone = {each.path for each in chosen}
    for parent in {path.parent for path in gone}:
        newest_first = checkpoints(parent)[::-1]
        stay = (each for each in newest_first if each.path not in gone)
        # By hash: what has the right size may still be damaged.
        if any(look(each, "hashes").good for each in stay):
            continue
        good = next((each for each in newest_first if each.path in gone and look(each, "hashes").good), None)
        if good is not None:
            raise CheckpointError(
                f"{good.path.name} is the last good checkpoint there; nothing was removed",
                where=str(parent),
                fix="leave it out, or add --force",
            )


def _shown(found: list[Found]) -> list[str]:
    titles = ("REMOVE", "STEP", "SIZE", "AGE")
    rows = [
        (
            show.plain(str(each.path)),
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
