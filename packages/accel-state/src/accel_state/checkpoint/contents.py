"""What lies in a folder of a checkpoint."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from accel_core.errors import CheckpointError
from accel_core.trouble import explaining


def plain_files(folder: Path) -> list[str]:
    """Return the paths of all files in ``folder``, sorted; raise CheckpointError for a link or a device."""
    found = []
    with explaining("list a folder of the checkpoint", folder):
        for root, folders, names in os.walk(folder, onerror=_raise):
            for name in (*folders, *names):
                path = Path(root, name)
                mode = os.lstat(path).st_mode
                if stat.S_ISREG(mode):
                    found.append(path.relative_to(folder).as_posix())
                elif not stat.S_ISDIR(mode):
                    raise CheckpointError(
                        "A checkpoint holds only files and folders, no links, pipes or devices",
                        where=str(path),
                        fix="write a copy of the file itself",
                    )
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


__all__ = ["plain_files"]
