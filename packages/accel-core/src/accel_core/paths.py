"""Paths that a file names, and files that are opened because another file names them."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from .errors import CheckpointError

# Links are never followed, and a descriptor is not handed to programs that are started meanwhile.
SAFE_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_to_read(path: Path) -> int:
    """Return a descriptor of the file ``path``; a link there is an OSError."""
    return os.open(path, os.O_RDONLY | SAFE_FLAGS)


def inner_path(path: object) -> PurePosixPath:
    """Return a path that a manifest names; raise CheckpointError unless it stays inside the checkpoint.

    Components name their own files, so more is allowed than in `fit`: dots in front and longer parts.
    """
    wrong = (
        not isinstance(path, str)
        or not path
        or "\0" in path
        or "\\" in path
        or path.startswith("/")
        or re.match(r"[A-Za-z]:", path) is not None
        or any(part in {"", ".", ".."} for part in path.split("/"))
    )
    if wrong:
        raise CheckpointError(
            f"The manifest names the file {shown(path)}, which is not a path inside the checkpoint",
            fix="do not use this checkpoint: it is damaged, or was made to reach other files",
        )
    return PurePosixPath(str(path))


def shown(value: object) -> str:
    """Return ``value`` as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


__all__ = ["SAFE_FLAGS", "inner_path", "open_to_read", "shown"]
