"""Where a checkpoint lies, and how it goes."""

from __future__ import annotations

import os
from pathlib import Path

from accel_core.errors import CheckpointError
from accel_core.trouble import explaining

from .files import Files
from .places import committed, discard, replaced


def located(path: str | Path) -> Path:
    """Return where the checkpoint ``path`` lies; raise CheckpointError when there is none."""
    real = Path(os.path.realpath(path))
    found = real if committed(real) else replaced(real)
    if found is None:
        what = "is not a committed checkpoint" if real.exists() else "does not exist"
        raise CheckpointError(
            f"The checkpoint {path} {what}",
            where=str(real),
            fix="name the folder of a checkpoint, or ask for the latest() of the folder above",
        )
    return found


def remove(files: Files, folder: Path) -> None:
    """Remove the checkpoint in ``folder``; whatever happens meanwhile, no half of it is left to be read."""
    with explaining("remove the checkpoint", folder):
        discard(files, folder)
        files.sync_folder(folder.parent)


__all__ = ["located", "remove"]
