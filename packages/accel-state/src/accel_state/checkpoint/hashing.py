"""Hashes of files: named in the manifest, computed beside the write, checked in parallel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import xxhash

from accel_core.errors import CheckpointError

from .files import Files, open_to_read, write_all
from .trouble import explaining

ALGORITHM = "xxh3_128"
"""What new checkpoints are hashed with: 128 bits, several times faster than any disk. It finds damage; it is
no signature, for who can write the files can write the manifest."""

PIECE = 8 << 20
"""Bytes that are written and hashed at a time."""
_INLINE = 256 << 10
"""Below this many bytes, handing them to another thread costs more than it saves."""
_BUFFER = 1 << 20


class Hasher(Protocol):
    """What hashlib's objects can do."""

    def update(self, data: memoryview, /) -> None:
        """Take in bytes."""

    def hexdigest(self) -> str:
        """Return the hash of all that was taken in."""
        ...


_ALGORITHMS: dict[str, Callable[[], Hasher]] = {"xxh3_128": xxhash.xxh3_128}


def hasher(algorithm: str) -> Hasher:
    """Return a new hash of that name; raise CheckpointError when this version does not know it."""
    if algorithm not in _ALGORITHMS:
        raise CheckpointError(
            f"Unknown hash {algorithm[:40]!r}; known: {', '.join(_ALGORITHMS)}",
            fix="read it with the version of accel-state that wrote it, or a newer one",
        )
    return _ALGORITHMS[algorithm]()


def digest(data: bytes | memoryview, algorithm: str = ALGORITHM) -> str:
    """Return the hash of ``data``."""
    result = hasher(algorithm)
    result.update(memoryview(data))
    return result.hexdigest()


def written(files: Files, path: Path, pieces: Iterable[memoryview]) -> tuple[int, str]:
    """Write a new file and flush it; return its size and its hash, computed in another thread meanwhile.

    The memory behind ``pieces`` is read twice and never copied. Raises CheckpointError.
    """
    result, size = hasher(ALGORITHM), 0
    with explaining("write a file of the checkpoint", path):
        file = files.create(path)
        try:
            with ThreadPoolExecutor(1, "accel-hash") as beside:
                for piece in pieces:
                    _put(files, file, piece, result, beside)
                    size += len(piece)
            files.sync(file)
        finally:
            os.close(file)
    return size, result.hexdigest()


def _put(files: Files, file: int, piece: memoryview, result: Hasher, beside: ThreadPoolExecutor) -> None:
    if len(piece) <= _INLINE:
        result.update(piece)
        write_all(files, file, piece)
        return
    hashed: Future[None] = beside.submit(result.update, piece)
    try:
        write_all(files, file, piece)
    finally:
        # Whoever made the piece may use its memory for the next one.
        hashed.result()


def read_hash(path: Path, algorithm: str) -> tuple[int, str]:
    """Return size and hash of a file, read a piece at a time. Raises OSError.

    It reads and does not map: of a failing disk a mapping makes a signal that ends the process.
    """
    result, size = hasher(algorithm), 0
    buffer = memoryview(bytearray(_BUFFER))
    with os.fdopen(open_to_read(path), "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            result.update(buffer[:count])
            size += count
    return size, result.hexdigest()


__all__ = ["ALGORITHM", "PIECE", "digest", "hasher", "read_hash", "written"]
