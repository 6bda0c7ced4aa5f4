"""The moment of a commit: the manifest, the names on the device, one rename."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from accel_core.errors import CheckpointError
from accel_core.trouble import explaining

from ..__about__ import __version__
from .contents import plain_files
from .files import Files, folders_of, sync_all
from .hashing import written
from .manifest import FileRecord, Manifest
from .naming import MANIFEST
from .places import committed, discard, side_of
from .sink import Part
from .verify import read_manifest


def merged(parts: list[Part]) -> Part:
    """Return what all ranks wrote; raise CheckpointError for a name that two ranks wrote.

    Only a folder may be of several ranks.
    """
    result = Part()
    writers: dict[str, int] = {}
    for rank, part in enumerate(parts):
        for name, entry in part.entries.items():
            if name in result.entries and not (entry.kind == "folder" and result.entries[name] == entry):
                raise CheckpointError(
                    f"Ranks {writers[name]} and {rank} both wrote {name!r}",
                    fix="make the names unique over the ranks",
                )
            result.entries[name] = entry
            writers.setdefault(name, rank)
        result.files |= part.files
    return result


def replaceable(target: Path) -> None:
    """Raise CheckpointError if replacing ``target`` would remove what no checkpoint put there."""
    if not os.path.lexists(target):
        return
    with explaining("look at what is there", target):
        if not target.is_dir():
            raise CheckpointError("There is a file of this name", where=str(target), fix="take another name")
        if not committed(target):
            if any(target.iterdir()):
                raise CheckpointError(
                    f"{target} holds files and is no checkpoint; committing would remove them",
                    where=str(target),
                    fix="save into a folder that does not exist yet, such as one inside it",
                )
            return
    try:
        known = read_manifest(target).files
    except CheckpointError:
        return  # Damaged: nothing tells what was added to it, and it is of no use.
    added = [path for path in plain_files(target) if path not in known and path != MANIFEST]
    if added:
        raise CheckpointError(
            "The checkpoint to be replaced holds files that are no part of it: "
            f"{', '.join(added[:5])}{', ...' if len(added) > 5 else ''}",
            where=str(target),
            fix="move them elsewhere: they would be removed with it",
        )


def manifest_of(part: Part, *, number: int, world_size: int, step: int | None) -> Manifest:
    """Return the manifest of what all ranks wrote, of now."""
    return Manifest(
        number=number,
        time=datetime.now(UTC).isoformat(),
        world_size=world_size,
        writer=f"accel-state {__version__}",
        step=step,
        entries=dict(sorted(part.entries.items())),
        files=dict(sorted(part.files.items())),
    )


def publish(
    files: Files, folder: Path, target: Path, part: Part, *, number: int, world_size: int, step: int | None
) -> None:
    """Make the written ``folder`` the checkpoint ``target``, durable and visible. Raises CheckpointError.

    Until the rename there is the old checkpoint or none; after it the new one.
    """
    manifest = manifest_of(part, number=number, world_size=world_size, step=step)
    _check_presence(folder, manifest.files)
    written(files, folder / MANIFEST, iter([memoryview(manifest.encode())]))
    replaceable(target)
    with explaining("commit the checkpoint", target):
        # The names of all files must be on the device before the one name that makes them count.
        sync_all(files, folders_of(folder))
        old = _displace(files, folder, target)
        try:
            files.rename(folder, target)
        except OSError:
            if old is not None:
                files.rename(old, target)
            raise
        files.sync_folder(target.parent)
    if old is not None:
        # The new one is there; what of the old one stays behind is removed by the next save.
        with suppress(OSError):
            discard(files, old)


def _check_presence(folder: Path, files: Mapping[str, FileRecord]) -> None:
    """Raise CheckpointError when rank 0 does not see what others wrote: they have other disks."""
    for path, record in files.items():
        file = folder / path
        with explaining("find a file that another rank wrote", file):
            size = file.stat().st_size
        if size != record.size:
            raise CheckpointError(
                f"A file that was written with {record.size:,} bytes has {size:,}", where=str(file)
            )


def _displace(files: Files, folder: Path, target: Path) -> Path | None:
    """Move the checkpoint that is replaced aside; return where it is."""
    if not target.exists():
        return None
    if not committed(target):
        files.remove_folder(target)
        return None
    side = side_of(folder)
    assert side is not None
    old = side.other("replaced")
    files.rename(target, old)
    return old


__all__ = ["manifest_of", "merged", "publish", "replaceable"]
