"""The moment of a commit: the manifest, a look whether all is there, and the record."""

from __future__ import annotations

from accel_core.errors import CheckpointError

from ..address import child, parent, shown
from ..hashing import digest
from ..manifest import Manifest
from ..naming import MANIFEST
from ..publish import manifest_of, merged
from ..sink import Part
from .listing import Spot, faults, remove, spot, spots, tidy
from .objects import Objects
from .record import Commit


def joined(parts: list[Part]) -> Part:
    """Return what all ranks wrote; raise CheckpointError for a name or a file that two ranks wrote."""
    writers: dict[str, int] = {}
    for rank, part in enumerate(parts):
        for path in part.files:
            if path in writers:
                raise CheckpointError(
                    f"Ranks {writers[path]} and {rank} both wrote the file {path!r}",
                    fix="give the files of each rank names of their own",
                )
            writers[path] = rank
    return merged(parts)


def publish(objects: Objects, uri: str, token: str, part: Part, *, world_size: int, step: int | None) -> None:
    """Make what was sent the checkpoint ``uri``, and remove what it replaces. Raises CheckpointError."""
    before = _spots(objects, uri)
    # Counted, not timed: the clocks of two machines that save one after the other may disagree.
    number = max((each.number for each in before), default=0) + 1
    manifest = manifest_of(part, number=number, world_size=world_size, step=step)
    text = manifest.encode()
    commit = Commit(
        number=manifest.number,
        time=manifest.time,
        step=step,
        world_size=world_size,
        size=manifest.size,
        token=token,
        manifest_size=len(text),
        manifest_hash=digest(text),
    )
    objects.write(child(child(uri, commit.folder), MANIFEST), text)
    _check(objects, uri, commit, manifest)
    objects.write(child(uri, commit.name), commit.encode())
    tidy(objects, before, commit, uri)


def _spots(objects: Objects, uri: str) -> list[Spot]:
    """Return what lies beside ``uri`` and at it."""
    beside = spots(objects, parent(uri))
    # Stores that are slow to show new folders show one that is asked for.
    return beside if any(each.uri == uri for each in beside) else [*beside, spot(objects, uri)]


def _check(objects: Objects, uri: str, commit: Commit, manifest: Manifest) -> None:
    """Raise CheckpointError when the store does not have what the ranks sent."""
    wrong = faults(objects, uri, commit, manifest)
    if wrong:
        raise CheckpointError(
            f"What was sent is not there: {'; '.join(wrong[:5])}{'; ...' if len(wrong) > 5 else ''}",
            where=shown(uri),
            fix="let all ranks reach one store (memory:// is that of one process), and let no two runs save "
            "under one name",
        )


def withdrawn(objects: Objects, uri: str, token: str) -> None:
    """Remove what one save left. Its record goes first, should it be there in spite of an error."""
    found = spot(objects, uri)
    records = tuple(name for name in found.records if token in name)
    remove(objects, Spot(uri, records, tuple(each for each in found.tokens if each == token)))


__all__ = ["joined", "publish", "withdrawn"]
