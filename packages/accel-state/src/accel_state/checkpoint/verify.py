"""Does a committed checkpoint hold what its manifest says, and nothing that would mislead?"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Literal

from accel_core.errors import CheckpointError
from accel_core.paths import open_to_read
from accel_core.trouble import explained, explaining

from .contents import plain_files
from .hashing import joined, part_hash, parts_of
from .manifest import MOST_BYTES, Entry, Manifest, decode
from .naming import MANIFEST

Verify = Literal["hashes", "sizes"]
"""How closely a checkpoint is looked at: every byte, or what is there, how long it is, and every header."""

_MOST_THREADS = 8
_MOST_SHOWN = 10


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint; raise CheckpointError when there is none or it is wrong."""
    path = folder / MANIFEST
    if not path.exists():
        raise CheckpointError(
            f"{folder} is not a committed checkpoint: it has no {MANIFEST}",
            where=str(folder),
            fix="name the folder of a checkpoint, or ask for the latest() of the folder above",
        )
    with explaining("read the manifest", path):
        file = open_to_read(path)
        with os.fdopen(file, "rb", buffering=0) as stream:
            size = os.fstat(file).st_size
            if size > MOST_BYTES:
                raise CheckpointError(
                    f"The manifest has {size:,} bytes; at most {MOST_BYTES:,} are read",
                    where=str(path),
                    fix="do not use this checkpoint: it is damaged, or was made to use up memory",
                )
            data = b"".join(iter(lambda: stream.read(size + 1), b""))
    return decode(data, str(path))


def faults(folder: Path, manifest: Manifest, verify: Verify, only: Iterable[str] | None = None) -> list[str]:
    """Return a sentence for each file that is not as the manifest says.

    ``only``: the files whose hashes are looked at, for ranks that share the work; all by default.
    """
    found = []
    for path, record in manifest.files.items():
        wrong = _unlike(folder, path, record.size)
        if wrong:
            found.append(f"{path}: {wrong}")
    found += [each for entry in manifest.entries.values() for each in _folder_faults(folder, entry, manifest)]
    if not found and verify == "hashes":
        found = _hash_faults(folder, manifest, manifest.files if only is None else only)
    return found


def refuse(folder: Path, found: list[str]) -> None:
    """Raise CheckpointError when there are faults."""
    if not found:
        return
    rest = f"; and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
    raise CheckpointError(
        f"The checkpoint {folder.name} is damaged: {'; '.join(found[:_MOST_SHOWN])}{rest}",
        where=str(folder),
        fix="use the checkpoint before it: latest() does",
    )


def _unlike(folder: Path, path: str, size: int) -> str:
    """Return how a file differs in kind and size. No link on the way to it is followed."""
    parts = PurePosixPath(path).parts
    for count in range(1, len(parts) + 1):
        place = folder.joinpath(*parts[:count])
        try:
            found = place.lstat()
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if stat.S_ISLNK(found.st_mode):
            return "is a link, or lies behind one"
        if count == len(parts) and not stat.S_ISREG(found.st_mode):
            return "is no file"
        if count == len(parts) and found.st_size != size:
            return f"has {found.st_size:,} bytes instead of {size:,}"
    return ""


def _folder_faults(folder: Path, entry: Entry, manifest: Manifest) -> list[str]:
    """Refuse what lies in a component's folder and was not saved: the component might read it."""
    if entry.kind != "folder":
        return []
    place = folder / entry.path
    if not place.is_dir() or place.is_symlink():
        return [f"{entry.path}: is missing, or no folder"]
    try:
        inside = [f"{entry.path}/{path}" for path in plain_files(place)]
    except CheckpointError as error:
        return [f"{entry.path}: {error.what} ({error.where})"]
    return [f"{path}: was not part of the checkpoint" for path in inside if path not in manifest.files]


def _hash_faults(folder: Path, manifest: Manifest, paths: Iterable[str]) -> list[str]:
    def look(task: tuple[str, int]) -> bytes | str:
        path, number = task
        try:
            return part_hash(folder / path, number)
        except OSError as error:
            return explained(error, "read it", folder / path).what

    # The largest first, so that none is left over at the end for one thread.
    ordered = sorted(paths, key=lambda path: -manifest.files[path].size)
    tasks = [(path, number) for path in ordered for number in parts_of(manifest.files[path].size)]
    parts: dict[str, list[bytes]] = {path: [] for path in ordered}
    wrong: dict[str, str] = {}
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "accel-verify") as threads:
        for (path, _), found in zip(tasks, threads.map(look, tasks), strict=True):
            if isinstance(found, str):
                wrong[path] = found
            else:
                parts[path].append(found)
    for path in ordered:
        expected = manifest.files[path].hash
        if path not in wrong and joined(parts[path]) != expected:
            wrong[path] = f"its {manifest.algorithm} is {joined(parts[path])} instead of {expected}"
    return [f"{path}: {what}" for path, what in wrong.items()]


__all__ = ["Verify", "faults", "read_manifest", "refuse"]
