"""The file operations of a save, one method each, so that a test can stop a save at any of them."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accel_core.paths import SAFE_FLAGS


class Files:
    """Make, write, flush, rename and remove. Every method raises OSError as the system does."""

    def make_folder(self, path: Path) -> None:
        """Make one folder that is not there yet."""
        path.mkdir()

    def create(self, path: Path) -> int:
        """Make a file that is not there yet, and return its descriptor."""
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | SAFE_FLAGS, 0o666)

    def write(self, file: int, data: memoryview) -> int:
        """Write some of ``data``, and return how many bytes."""
        return os.write(file, data)

    def sync(self, file: int) -> None:
        """Return once the device has what was written to ``file``."""
        _flush(file)

    def sync_folder(self, path: Path) -> None:
        """Return once the device has the names in the folder ``path``."""
        if os.name == "nt":
            return  # Windows opens no folders; renames go through its journal.
        file = os.open(path, os.O_RDONLY | SAFE_FLAGS)
        try:
            _flush(file)
        finally:
            os.close(file)

    def rename(self, old: Path, new: Path) -> None:
        """Give a folder another name in the same parent."""
        old.rename(new)

    def replace(self, old: Path, new: Path) -> None:
        """Give a file another name in the same folder; a file of that name goes."""
        old.replace(new)

    def remove(self, path: Path) -> None:
        """Remove a file or a link."""
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()


def _flush(file: int) -> None:
    try:
        import fcntl

        # On macOS fsync stops at the drive's cache.
        full: int = fcntl.F_FULLFSYNC  # type: ignore[attr-defined, unused-ignore]
        fcntl.fcntl(file, full)
    except (ImportError, AttributeError, OSError):
        os.fsync(file)


@functools.cache
def _range_writer() -> Any:
    if sys.platform != "linux":
        return None
    import ctypes

    found = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if found is not None:
        found.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return found


_START = 2
"""SYNC_FILE_RANGE_WRITE: begin, and do not wait (man 2 sync_file_range)."""


def hasten(file: int, begin: int, count: int) -> None:
    """Have the device begin to write bytes that a later flush would wait for, where the system can.

    It promises nothing and never fails.
    """
    write = _range_writer()
    if write is not None:
        write(file, begin, count, _START)


def write_all(files: Files, file: int, data: memoryview) -> None:
    """Write all of ``data``, however little the system takes at a time."""
    while data:
        data = data[files.write(file, data) :]


def sync_all(files: Files, folders: Iterable[Path]) -> None:
    """Flush the names in ``folders``."""
    for folder in folders:
        files.sync_folder(folder)


def folders_of(path: Path) -> list[Path]:
    """Return every folder below ``path`` and itself, the innermost first. Links are not followed."""
    return [Path(root) for root, _, _ in os.walk(path, topdown=False)]


def remove_tree(files: Files, path: Path) -> None:
    """Remove a folder with all that is in it; links are removed, not followed."""
    with os.scandir(path) as entries:
        found = list(entries)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(files, Path(entry.path))
        else:
            files.remove(Path(entry.path))
    files.remove_folder(path)


__all__ = ["Files", "folders_of", "hasten", "remove_tree", "sync_all", "write_all"]
