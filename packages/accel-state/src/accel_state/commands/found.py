"""What there is to say about the checkpoints at a path."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_core.errors import CheckpointError

from ..checkpoint.listing import Listed, checkpoints
from ..checkpoint.located import located
from ..checkpoint.places import committed
from ..checkpoint.verify import Verify, faults


@dataclass(frozen=True, slots=True)
class Found:
    """What the manifest of a checkpoint says, and what is wrong with it; None where there is no manifest."""

    path: Path
    name: str
    checked: str
    faults: tuple[str, ...]
    number: int | None = None
    step: int | None = None
    size: int | None = None
    time: str | None = None
    world_size: int | None = None
    files: int | None = None
    writer: str | None = None

    @property
    def good(self) -> bool:
        """Return whether nothing is wrong with it, as far as it was looked at."""
        return not self.faults

    def facts(self) -> dict[str, Any]:
        """Return what programs are told."""
        return {
            "name": self.name,
            "path": str(self.path),
            "number": self.number,
            "step": self.step,
            "size": self.size,
            "time": self.time,
            "world_size": self.world_size,
            "writer": self.writer,
            "checked": self.checked,
            "verified": self.good,
            "faults": list(self.faults),
        }


def look(each: Listed, verify: Verify) -> Found:
    """Return what there is to say about a checkpoint."""
    name = each.path.name
    try:
        manifest = each.manifest()
    except CheckpointError as error:
        return Found(each.path, name, verify, (f"manifest.json: {error.what}",), each.number)
    wrong = faults(each.path, manifest, verify)
    if each.number is None:
        wrong = ["manifest.json: its first lines are not those of a manifest", *wrong]
    return Found(
        path=each.path,
        name=name,
        checked=verify,
        faults=tuple(wrong),
        number=manifest.number,
        step=manifest.step,
        size=manifest.size,
        time=manifest.time,
        world_size=manifest.world_size,
        files=len(manifest.files),
        writer=manifest.writer,
    )


def one(path: str | os.PathLike[str]) -> Listed:
    """Return the checkpoint at ``path``; raise CheckpointError when there is none."""
    folder = located(Path(path))
    for each in checkpoints(folder.parent):
        if each.path == folder:
            return each
    # Its folder cannot be listed, or it was found behind a link.
    return Listed(folder, None)


def those(path: str | os.PathLike[str]) -> list[Listed]:
    """Return the checkpoint at ``path``, or those in it; raise CheckpointError where there is nothing."""
    folder = Path(path)
    if committed(folder) or not folder.is_dir():
        return [one(folder)]
    return checkpoints(folder)


def newest_good(found: Iterable[Found]) -> Found | None:
    """Return the last one with which nothing is wrong."""
    return next((each for each in reversed(list(found)) if each.good), None)


__all__ = ["Found", "look", "newest_good", "one", "those"]
