"""Which checkpoints a remote folder holds, and what dead saves left in it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from accel_core.errors import CheckpointError

from ..address import child, shown
from ..hashing import digest
from ..manifest import Manifest
from ..manifest import decode as decode_manifest
from ..naming import MANIFEST
from .objects import Objects
from .record import MOST_RECORD, Commit, decode, folder_of, place_of, stale, token_of
from .threads import in_threads
from .trouble import DamagedError

_logger = logging.getLogger(__name__)
_AT_A_TIME = 8


@dataclass(frozen=True, slots=True)
class Spot:
    """What lies at one URI: the names of records, the newest first, and the tokens of folders with data."""

    uri: str
    records: tuple[str, ...]
    tokens: tuple[str, ...]

    @property
    def number(self) -> int:
        """Return the number of the newest record, 0 without one."""
        place = place_of(self.records[0]) if self.records else None
        return place[0] if place else 0


@dataclass(frozen=True, slots=True)
class RemoteListed:
    """A committed checkpoint. Without a ``number`` it is damaged, and has no place among the others."""

    path: str
    number: int | None
    time: str = ""
    commit: Commit | None = None
    fault: str = ""
    objects: Objects = field(default_factory=Objects, repr=False, compare=False)

    def manifest(self) -> Manifest:
        """Return what it says about itself; raise CheckpointError when that cannot be read."""
        if self.commit is None:
            raise DamagedError(self.fault, where=shown(self.path), fix="use the checkpoint before it")
        return manifest_of(self.objects, self.path, self.commit)


def spot(objects: Objects, uri: str) -> Spot:
    """Return what lies at ``uri``."""
    found = objects.names(uri)
    records = {each.name: place_of(each.name) for each in found if each.size is not None}
    placed = {name: place for name, place in records.items() if place is not None}
    tokens = (token_of(each.name) for each in found if each.size is None)
    return Spot(
        uri,
        tuple(sorted(placed, key=lambda name: placed[name], reverse=True)),
        tuple(token for token in tokens if token is not None),
    )


def spots(objects: Objects, directory: str) -> list[Spot]:
    """Return what lies in each folder of ``directory``: checkpoints, and what was to become one."""
    folders = [child(directory, each.name) for each in objects.names(directory) if each.size is None]
    found = in_threads(lambda uri: spot(objects, uri), folders, _AT_A_TIME)
    return [each for each in found if each.records or each.tokens]


def newest(objects: Objects, uri: str) -> Commit:
    """Return the newest commit at ``uri``; raise CheckpointError when there is none that can be read."""
    found = spot(objects, uri)
    while found.records:
        try:
            return _readable(objects, found)
        except DamagedError:
            before, found = found, spot(objects, uri)
            # Replaced by another run while it was read: the new one is there.
            if before == found:
                raise
    what, fix = "does not exist", "name a checkpoint, or ask for the latest() of the folder above"
    if found.tokens:
        what = "was not committed"
    elif any(each.name == MANIFEST for each in objects.names(uri)):
        what = "is a copy of a folder, which was not saved here"
        fix = "fetch it to a file system, and load it from there"
    raise CheckpointError(f"The checkpoint {shown(uri)} {what}", where=shown(uri), fix=fix)


def _readable(objects: Objects, found: Spot) -> Commit:
    """Return the newest record that can be read; an older one is there where a replacement was killed."""
    fault: DamagedError | None = None
    for name in found.records:
        try:
            return _record(objects, found.uri, name)
        except DamagedError as error:
            fault = fault or error
    assert fault is not None
    raise fault


def _record(objects: Objects, uri: str, name: str) -> Commit:
    where = child(uri, name)
    try:
        return decode(objects.read(where, 0, MOST_RECORD), name, shown(where))
    except FileNotFoundError as error:
        raise DamagedError(
            f"The record {name} was removed meanwhile", where=shown(uri), fix="look again"
        ) from error


def checkpoints(objects: Objects, directory: str) -> list[RemoteListed]:
    """Return the committed checkpoints in ``directory`` in the order of their commits.

    Those whose records cannot be read come first. A folder that does not exist holds none.
    """

    def look(found: Spot) -> RemoteListed:
        try:
            commit = _readable(objects, found)
        except DamagedError as error:
            return RemoteListed(found.uri, None, fault=error.what, objects=objects)
        return RemoteListed(found.uri, commit.number, commit.time, commit, objects=objects)

    committed = [each for each in spots(objects, directory) if each.records]
    return sorted(in_threads(look, committed, _AT_A_TIME), key=_order)


def _order(each: RemoteListed) -> tuple[int, str, str]:
    return -1 if each.number is None else each.number, each.time, each.path


def manifest_of(objects: Objects, uri: str, commit: Commit) -> Manifest:
    """Return the manifest of a commit; raise DamagedError when it is not the one that was written."""
    where = child(child(uri, commit.folder), MANIFEST)
    try:
        # One byte more than there should be: a longer object is another one.
        data = objects.read(where, 0, commit.manifest_size + 1)
    except FileNotFoundError as error:
        raise DamagedError(
            "The manifest is missing", where=shown(where), fix="use the checkpoint before it"
        ) from error
    if len(data) != commit.manifest_size or digest(data) != commit.manifest_hash:
        raise DamagedError(
            "The manifest is not what was written (its size or hash differs)",
            where=shown(where),
            fix="use the checkpoint before it: latest() does",
        )
    try:
        return decode_manifest(data, shown(where))
    except CheckpointError as error:
        raise DamagedError(error.what, where=error.where, fix=error.fix) from error


def faults(objects: Objects, uri: str, commit: Commit, manifest: Manifest) -> list[str]:
    """Return a sentence for each file that is missing or of another size."""
    there = objects.sizes(child(uri, commit.folder))
    found = []
    for path, record in manifest.files.items():
        if path not in there:
            found.append(f"{path}: is missing")
        elif there[path] != record.size:
            found.append(f"{path}: has {there[path]:,} bytes instead of {record.size:,}")
    return found


def good(each: RemoteListed) -> bool:
    """Tell whether a checkpoint has all its files in their sizes."""
    try:
        manifest = each.manifest()
    except DamagedError:
        return False
    return each.commit is not None and not faults(each.objects, each.path, each.commit, manifest)


def remove(objects: Objects, found: Spot) -> None:
    """Remove a checkpoint: first what makes it one, so that half of it is never taken for the whole."""
    for name in reversed(found.records):
        objects.remove(child(found.uri, name))
    for token in found.tokens:
        objects.remove(child(found.uri, folder_of(token)))
    objects.remove_empty(found.uri)


def tidy(objects: Objects, found: Sequence[Spot], own: Commit | None, uri: str = "") -> None:
    """Remove what the commit ``own`` at ``uri`` replaced, and what saves left that died a day ago.

    Only space is at stake, so a failure is logged.
    """
    for each in found:
        replaced = own is not None and each.uri == uri
        used = {place[1] for place in map(place_of, each.records) if place is not None}
        dead = [t for t in each.tokens if (replaced or (t not in used and stale(t))) and not _of(t, own)]
        try:
            if replaced:
                for name in reversed(each.records):
                    objects.remove(child(uri, name))
            for token in dead:
                objects.remove(child(each.uri, folder_of(token)))
            if dead:
                objects.remove_empty(each.uri)
        except CheckpointError as error:
            _logger.warning("What an older save left at %s stays there: %s", shown(each.uri), error)


def _of(token: str, own: Commit | None) -> bool:
    return own is not None and token == own.token


__all__ = [
    "RemoteListed",
    "Spot",
    "checkpoints",
    "faults",
    "good",
    "manifest_of",
    "newest",
    "remove",
    "spot",
    "spots",
    "tidy",
]
