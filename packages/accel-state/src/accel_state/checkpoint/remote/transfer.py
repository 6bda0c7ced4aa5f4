"""Files to the store and back, in many requests at a time, verified on arrival."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from accel_core.trouble import explaining

from ..address import child, shown
from ..hashing import PART, joined, parts_of, read_hash
from ..manifest import FileRecord
from .objects import Objects
from .threads import in_threads
from .trouble import DamagedError

UPLOADS = 8
"""At a time and rank, of files up to this many bytes:"""
_LARGE = 32 << 20
_LARGE_UPLOADS = 2
"""Of larger ones, whose parts drivers send beside each other, with several hundred MB in memory for each."""
DOWNLOADS = 4
"""Files at a time, and parts of each of them."""
_PIECE = 16 << 20
"""Bytes asked for at a time: what is lost when a request breaks off, and held in memory by each thread."""


def upload(objects: Objects, folder: Path, files: Iterable[str], uri: str) -> None:
    """Store ``files`` of ``folder`` below ``uri``, the largest first. Raises CheckpointError."""

    def send(path: str) -> None:
        objects.upload(folder / path, child(uri, path))

    sizes = {path: (folder / path).stat().st_size for path in files}
    ordered = sorted(sizes, key=lambda path: (-sizes[path], path))
    in_threads(send, [path for path in ordered if sizes[path] > _LARGE], _LARGE_UPLOADS)
    in_threads(send, [path for path in ordered if sizes[path] <= _LARGE], UPLOADS)


def download(objects: Objects, uri: str, target: Path, record: FileRecord, algorithm: str) -> None:
    """Fetch an object into the file ``target``, which appears when its hash is right, or not at all.

    Raises DamagedError when the object is missing or another one, also when asked for a second time.
    """
    with explaining("make a folder for parts of a checkpoint", target):
        target.parent.mkdir(parents=True, exist_ok=True)
    found = ""
    for _ in range(2):
        found = _fetched(objects, uri, target, record)
        if found == record.hash:
            return
    raise DamagedError(
        f"A file of the checkpoint is damaged: its {algorithm} is {found} instead of {record.hash}",
        where=shown(uri),
        fix="use the checkpoint before it: latest() does",
    )


def _fetched(objects: Objects, uri: str, target: Path, record: FileRecord) -> str:
    """Fetch an object; return the hash of what came."""
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with explaining("make a file for a part of a checkpoint", temporary):
            file = os.open(
                temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o600
            )
            os.close(file)
        numbers = parts_of(record.size)
        digests = in_threads(
            lambda number: _part(objects, uri, temporary, number, record.size), numbers, DOWNLOADS
        )
        found = joined(digests)
        if found == record.hash:
            with explaining("keep a file of the checkpoint", target):
                temporary.replace(target)
        return found
    finally:
        with suppress(OSError):
            temporary.unlink()


def _part(objects: Objects, uri: str, file: Path, number: int, size: int) -> bytes:
    """Fetch one of the parts that are hashed by themselves; return its hash."""
    import xxhash

    result = xxhash.xxh3_128()
    place, end = number * PART, min((number + 1) * PART, size)
    while place < end:
        data = _piece(objects, uri, place, min(place + _PIECE, end))
        result.update(data)
        with explaining("write a part of the checkpoint", file), file.open("r+b") as stream:
            stream.seek(place)
            stream.write(data)
        place += len(data)
    return bytes(result.digest())


def _piece(objects: Objects, uri: str, begin: int, end: int) -> bytes:
    try:
        data = objects.read(uri, begin, end)
    except FileNotFoundError as error:
        raise DamagedError(
            "A file of the checkpoint is missing", where=shown(uri), fix="use the checkpoint before it"
        ) from error
    if len(data) != end - begin:
        raise DamagedError(
            f"A file of the checkpoint ends at byte {begin + len(data):,}, before byte {end:,}",
            where=shown(uri),
            fix="use the checkpoint before it: latest() does",
        )
    return data


def present(path: Path, record: FileRecord) -> bool:
    """Tell whether a file that was fetched before is still as it should be; remove it when it is not."""
    try:
        if path.stat().st_size == record.size and read_hash(path) == (record.size, record.hash):
            return True
        path.unlink()
    except OSError:
        pass
    return False


__all__ = ["download", "present", "upload"]
