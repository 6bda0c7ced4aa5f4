"""Which checkpoints a folder holds, from the oldest to the newest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from accel_core.errors import CheckpointError

from .manifest import Manifest
from .naming import MANIFEST
from .places import committed, side_of
from .trouble import explaining
from .verify import read_manifest


@dataclass(frozen=True, slots=True)
class Listed:
    """A committed checkpoint; ``fault`` says why its manifest cannot be read, and there is none then."""

    path: Path
    manifest: Manifest | None
    fault: str = ""


def checkpoints(directory: Path) -> list[Listed]:
    """Return the committed checkpoints in ``directory`` in the order of their commits.

    Those whose manifest cannot be read have no place in that order and come first.
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
        return Listed(path, read_manifest(path))
    except CheckpointError as error:
        return Listed(path, None, f"{MANIFEST}: {error.what}")


def _order(each: Listed) -> tuple[int, str, str]:
    if each.manifest is None:
        return -1, "", each.path.name
    return each.manifest.number, each.manifest.time, each.path.name


def next_number(directory: Path) -> int:
    """Return one more than the highest number of a commit in ``directory``.

    Counted, not timed: the clocks of two machines that save one after the other may disagree.
    """
    numbers = [each.manifest.number for each in checkpoints(directory) if each.manifest is not None]
    return max(numbers, default=0) + 1


__all__ = ["Listed", "checkpoints", "next_number"]
