"""Folders of this machine in which parts of remote checkpoints lie while they are needed.

Whoever uses a room holds a lock on it, which ends with the process; a room that nobody holds is removed
by the next who comes.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accel_core.errors import CheckpointError
from accel_core.trouble import explaining

from ..places import abandoned, machine


class Room:
    """A folder that is kept until ``release``, or the end of this process."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def release(self) -> None:
        """Let go of the folder, and remove it when nobody else holds it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
            _remove_unheld(self.path)


def root_of(local: str | os.PathLike[str] | None) -> Path:
    """Return the folder for rooms, made if need be: below ``local``, or where temporary files go.

    Raises CheckpointError when it is somebody else's, who could put other files there.
    """
    base = Path(local) if local is not None else Path(tempfile.gettempdir(), f"accel-checkpoints-{_user()}")
    # Locks are known to the processes of one machine.
    path = base / machine()
    with explaining("make a folder for parts of checkpoints", path):
        for folder in (base, path):
            folder.mkdir(mode=0o700, parents=local is not None, exist_ok=True)
        found = path.parent.lstat()
    # Windows has a folder for temporary files for each user.
    strange = hasattr(os, "getuid") and found.st_uid != os.getuid()
    if local is None and (strange or not stat.S_ISDIR(found.st_mode)):
        raise CheckpointError(
            "The folder for parts of checkpoints belongs to somebody else",
            where=str(base),
            fix="set TMPDIR, or pass local= to RemoteStore",
        )
    return path


def enter(root: Path, name: str) -> Room:
    """Return the room of that name, which other processes may be in too. Raises CheckpointError."""
    path = root / name
    with explaining("make a folder for parts of a checkpoint", path):
        while True:
            path.mkdir(mode=0o700, exist_ok=True)
            try:
                return Room(path, _held(path))
            except FileNotFoundError:
                continue  # It was removed between the two.


def sweep(root: Path, keep: str = "") -> None:
    """Remove the rooms that dead processes left; ``keep`` is one that is about to be used."""
    with suppress(OSError):
        for path in sorted(root.iterdir()):
            if path.name != keep:
                _remove_unheld(path)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock on the file ``path``, which is made, for as long as the block runs."""
    file = os.open(path, os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        with suppress(ImportError):
            import fcntl

            # Without locks a file may be fetched twice, each time under a name of its own.
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _held(path: Path) -> int:
    file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)) if os.name != "nt" else -1
    try:
        with suppress(ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_SH)
        if file >= 0 and not os.path.samestat(os.fstat(file), path.stat()):
            raise FileNotFoundError(path)
    except BaseException:
        if file >= 0:
            os.close(file)
        raise
    return file


def _remove_unheld(path: Path) -> None:
    with suppress(OSError), abandoned(path, machine()) as nobody:
        if nobody:
            shutil.rmtree(path, ignore_errors=True)


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "own"


__all__ = ["Room", "alone", "enter", "root_of", "sweep"]
