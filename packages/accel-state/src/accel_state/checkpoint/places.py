"""Folders beside a checkpoint: the one being written, the one being replaced, and what dead runs left.

Their names begin with a dot and say what they are: ``.NAME.accel-writing-MACHINE-TOKEN``. Who writes
holds a lock on the folder; the system lets go of it when the process ends, however it ends.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .files import Files, remove_tree
from .naming import MANIFEST

STALE_AFTER = 24 * 3600.0
"""Seconds without a change after which a folder is taken for left behind where locks cannot tell."""

_NAME = re.compile(r"\.(.+)\.accel-(writing|replaced|removed)-([0-9a-f]{8})-([0-9a-f]{12})")
Role = Literal["writing", "replaced", "removed"]


@dataclass(frozen=True, slots=True)
class Side:
    """A folder beside the checkpoint ``target``: which role it has, and who made it."""

    path: Path
    target: Path
    role: str
    machine: str
    token: str

    def other(self, role: Role) -> Path:
        """Return the path of the folder of another role of the same save."""
        return _side(self.target, role, self.machine, self.token)


class Lock:
    """A lock on a folder, held until ``release`` or the end of this process and of those it forked."""

    def __init__(self, path: Path) -> None:
        """Take the lock. Raises BlockingIOError when another holds it, OSError when there are no locks."""
        self._file = -1
        file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The folder may have been taken away between opening and locking it.
            if not os.path.samestat(os.fstat(file), path.stat()):
                raise FileNotFoundError(path)
        except ImportError:
            os.close(file)
            raise OSError("this system has no locks on folders") from None
        except BaseException:
            os.close(file)
            raise
        self._file = file

    def release(self) -> None:
        """Let go."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        with suppress(OSError):
            self.release()


def machine() -> str:
    """Return eight letters for the running system: locks are known to all of its processes."""
    try:
        identity = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        identity = socket.gethostname()
    return hashlib.blake2b(identity.strip().encode(), digest_size=4).hexdigest()


def _side(target: Path, role: Role, system: str, token: str) -> Path:
    return target.parent / f".{target.name}.accel-{role}-{system}-{token}"


def claim(files: Files, target: Path) -> tuple[Path, Lock | None]:
    """Make and lock a folder to write the checkpoint ``target`` in. Raises OSError."""
    system = machine()
    while True:
        path = _side(target, "writing", system, secrets.token_hex(6))
        files.make_folder(path)
        try:
            return path, Lock(path)
        except (BlockingIOError, FileNotFoundError):
            continue  # Another run took the new folder for one left behind: it is gone.
        except OSError:
            return path, None


def sides(parent: Path, target: Path | None = None) -> Iterator[Side]:
    """Yield the folders beside checkpoints in ``parent``, or beside the one at ``target``. Raises OSError."""
    with os.scandir(parent) as entries:
        found = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    for name in found:
        match = _NAME.fullmatch(name)
        if match and (target is None or match[1] == target.name):
            yield Side(parent / name, parent / match[1], match[2], match[3], match[4])


def side_of(path: Path) -> Side | None:
    """Return what the name of a folder says, None when it is not one of ours."""
    match = _NAME.fullmatch(path.name)
    return Side(path, path.parent / match[1], match[2], match[3], match[4]) if match else None


def tidy(files: Files, parent: Path) -> None:
    """Remove what dead runs left in ``parent``, and put back a checkpoint that was about to be replaced.

    Whatever may still be written is left alone, and so is what cannot be removed: only space is at stake.
    """
    with suppress(OSError):
        found = list(sides(parent))
        for side in found:
            with suppress(OSError):
                _tidy_one(files, side, parent)


def _tidy_one(files: Files, side: Side, parent: Path) -> None:
    if side.role == "removed":
        remove_tree(files, side.path)
    elif side.role == "writing":
        with abandoned(side.path, side.machine) as certain:
            if certain:
                discard(files, side.path)
    else:
        writing = side.other("writing")
        if writing.exists():
            with abandoned(writing, side.machine) as certain:
                if not certain:
                    return
        if os.path.lexists(side.target):
            discard(files, side.path)
        else:
            files.rename(side.path, side.target)
            files.sync_folder(parent)


def discard(files: Files, path: Path) -> None:
    """Remove a folder: under another name first, so that half of it is never taken for the whole."""
    side = side_of(path)
    target, token = (side.target, side.token) if side else (path, secrets.token_hex(6))
    gone = _side(target, "removed", machine(), token)
    if path != gone:
        files.rename(path, gone)
    remove_tree(files, gone)


@contextmanager
def abandoned(path: Path, system: str) -> Iterator[bool]:
    """Tell whether nobody writes in ``path`` any more, which then stays so during the block.

    On the system that made it the lock tells. From elsewhere, and where there are no locks, only time
    does: no file in it has changed for a day.
    """
    lock: Lock | None = None
    if system == machine():
        try:
            lock = Lock(path)
        except (BlockingIOError, FileNotFoundError):
            yield False
            return
        except OSError:
            lock = None
    try:
        yield lock is not None or _old(path)
    finally:
        if lock is not None:
            lock.release()


def _old(path: Path) -> bool:
    newest = path.stat().st_mtime
    for root, _, names in os.walk(path):
        for name in (".", *names):
            newest = max(newest, os.lstat(Path(root, name)).st_mtime)
    return time.time() - newest > STALE_AFTER


def committed(path: Path) -> bool:
    """Tell whether ``path`` is a folder with a manifest; what is in it may still be damaged."""
    return (path / MANIFEST).is_file()


def replaced(target: Path) -> Path | None:
    """Return where the checkpoint ``target`` is if a run was killed while it replaced it."""
    with suppress(OSError):
        if not target.exists():
            for side in sides(target.parent, target):
                if side.role == "replaced" and committed(side.path):
                    return side.path
    return None


__all__ = [
    "Lock",
    "Side",
    "abandoned",
    "claim",
    "committed",
    "discard",
    "machine",
    "replaced",
    "side_of",
    "sides",
    "tidy",
]
