"""Which checkpoints a folder holds, from the oldest to the newest."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from accel_core.errors import CheckpointError
from accel_core.trouble import explaining

from .manifest import Manifest
from .naming import MANIFEST
from .places import committed, side_of
from .verify import read_manifest

# Of a manifest its first lines are enough for the order; the rest may be long.
_HEAD = 1024
_NUMBER = re.compile(
    rb'[^\n]+\n"number": (\d{1,15}),\n"step": (?:null|-?\d{1,20}),\n"time": "([^"\n]{0,60})",\n'
)


@dataclass(frozen=True, slots=True)
class Listed:
    """A committed checkpoint. Without a ``number`` it is damaged, and has no place among the others."""

    path: Path
    number: int | None
    time: str = ""

    def manifest(self) -> Manifest:
        """Return what it says about itself; raise CheckpointError when that cannot be read."""
        return read_manifest(self.path)


def checkpoints(directory: Path) -> list[Listed]:
    """Return the committed checkpoints in ``directory`` in the order of their commits.

    Those that lack a number come first. Links are left out: what they lead to would be there twice.
    A folder that does not exist holds none; raises CheckpointError for one that cannot be listed.
    """
    with explaining("list the checkpoints", directory):
        try:
            with os.scandir(directory) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []
    found = [_look(path) for path in map(directory.joinpath, names) if _counts(path)]
    return sorted(found, key=_order)


def _counts(path: Path) -> bool:
    side = side_of(path)
    if side is None:
        return committed(path)
    # Killed while it was replaced: it is the checkpoint until the other one is there.
    return side.role == "replaced" and not os.path.lexists(side.target) and committed(path)


def _look(path: Path) -> Listed:
    try:
        with (path / MANIFEST).open("rb") as stream:
            found = _NUMBER.match(stream.read(_HEAD))
    except OSError:
        found = None
    if found is None:
        return Listed(path, None)
    return Listed(path, int(found[1]), found[2].decode("ascii", "replace"))


def _order(each: Listed) -> tuple[int, str, str]:
    return -1 if each.number is None else each.number, each.time, each.path.name


def next_number(directory: Path) -> int:
    """Return one more than the highest number of a commit in ``directory``.

    Counted, not timed: the clocks of two machines that save one after the other may disagree.
    """
    return max((each.number or 0 for each in checkpoints(directory)), default=0) + 1


def why_not(each: Listed) -> str:
    """Return what is wrong with a checkpoint that lacks a number."""
    try:
        each.manifest()
    except CheckpointError as error:
        return f"{MANIFEST}: {error.what}"
    return f"{MANIFEST}: its first lines are not those of a manifest"


__all__ = ["Listed", "checkpoints", "next_number", "why_not"]
