"""Hashes of files: named in the manifest, computed beside the write, checked in parallel."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import xxhash

from accel_core.errors import CheckpointError
from accel_core.paths import open_to_read
from accel_core.trouble import explaining

from .files import Files, hasten, write_all

ALGORITHM = "xxh3_128-64MiB"
"""What new checkpoints are hashed with: XXH3 of 128 bits, several times faster than any disk.

Of a file up to 64 MiB it is the plain hash; of a larger one the hash of the hashes of its parts of 64 MiB, so
that many threads verify one file. It finds damage; it is no signature, for who can write the files can
write the manifest.
"""

PART = 64 << 20
"""Bytes of such a part."""

PIECE = 8 << 20
"""Bytes that are written and hashed at a time."""
_INLINE = 256 << 10
"""Below this many bytes, handing them to another thread costs more than it saves."""
_MOST_BEHIND = 2
"""Pieces that wait to be hashed while the next ones are written; a copy from a device is held that long."""
_BUFFER = 1 << 20


class Hasher:
    """The hash of what is taken in, piece by piece."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._part = xxhash.xxh3_128()
        self._room = PART

    def update(self, data: memoryview) -> None:
        """Take in bytes."""
        while data:
            if not self._room:
                self._parts.append(self._part.digest())
                self._part, self._room = xxhash.xxh3_128(), PART
            taken = data[: self._room]
            self._part.update(taken)
            self._room -= len(taken)
            data = data[len(taken) :]

    def hexdigest(self) -> str:
        """Return the hash of all that was taken in."""
        return joined([*self._parts, self._part.digest()])


def joined(parts: Sequence[bytes]) -> str:
    """Return the hash of a file from those of its parts in order."""
    return parts[0].hex() if len(parts) == 1 else xxhash.xxh3_128(b"".join(parts)).hexdigest()


_ALGORITHMS: dict[str, Callable[[], Hasher]] = {ALGORITHM: Hasher}


def hasher(algorithm: str, where: str = "") -> Hasher:
    """Return a new hash of that name; raise CheckpointError when this version does not know it."""
    if algorithm not in _ALGORITHMS:
        raise CheckpointError(
            f"Unknown hash {algorithm[:40]!r}; known: {', '.join(_ALGORITHMS)}",
            where=where,
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
                behind: deque[Future[None]] = deque()
                for piece in pieces:
                    _take_in(result, piece, beside, behind)
                    write_all(files, file, piece)
                    if len(piece) > _INLINE:
                        hasten(file, size, len(piece))
                    size += len(piece)
                _catch_up(behind, 0)
            files.sync(file)
        finally:
            os.close(file)
    return size, result.hexdigest()


def _take_in(
    result: Hasher, piece: memoryview, beside: ThreadPoolExecutor, behind: deque[Future[None]]
) -> None:
    """Have ``piece`` hashed, in the other thread if it is large, which may be a little behind."""
    if len(piece) > _INLINE:
        _catch_up(behind, _MOST_BEHIND)
        # An interpreter that ends starts no threads any more; a save in the background goes on.
        with suppress(RuntimeError):
            behind.append(beside.submit(result.update, piece))
            return
    _catch_up(behind, 0)
    result.update(piece)


def _catch_up(behind: deque[Future[None]], most: int) -> None:
    while len(behind) > most:
        behind.popleft().result()


def part_hash(path: Path, number: int) -> bytes:
    """Return the hash of one part of a file, counted from 0. Raises OSError.

    It reads and does not map: of a failing disk a mapping makes a signal that ends the process.
    """
    result, left = xxhash.xxh3_128(), PART
    buffer = memoryview(bytearray(_BUFFER))
    with os.fdopen(open_to_read(path), "rb", buffering=0) as stream:
        stream.seek(number * PART)
        while left and (count := stream.readinto(buffer[: min(left, _BUFFER)])):
            result.update(buffer[:count])
            left -= count
    return result.digest()


def parts_of(size: int) -> range:
    """Return the numbers of the parts of a file of ``size`` bytes; an empty one has one."""
    return range(max(1, -(-size // PART)))


def read_hash(path: Path) -> tuple[int, str]:
    """Return size and hash of a file. Raises OSError."""
    size = path.stat().st_size
    return size, joined([part_hash(path, number) for number in parts_of(size)])


__all__ = [
    "ALGORITHM",
    "PIECE",
    "digest",
    "hasher",
    "joined",
    "part_hash",
    "parts_of",
    "read_hash",
    "written",
]
