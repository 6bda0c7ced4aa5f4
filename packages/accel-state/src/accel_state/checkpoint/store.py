"""Checkpoints in folders of a file system: written aside, verified by hash, committed by one rename."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accel_core.errors import CheckpointError
from accel_core.protocols import Collectives, LonelyCollectives, StateSink
from accel_core.trouble import explaining

from .agreement import together, withdraw
from .files import Files
from .listing import Listed, checkpoints, next_number, why_not
from .located import located, remove
from .places import Lock, claim, discard, tidy
from .publish import merged, publish, replaceable
from .rotation import surplus
from .sink import CheckpointSink, Part
from .source import CheckpointSource
from .verify import Verify, faults, read_manifest, refuse
from .whole import whole

_logger = logging.getLogger(__name__)


class CheckpointStore:
    """Save and load checkpoints that are complete or not there at all, on one process or many.

    ``group``: the ranks that save together, all of which see one file system; without it a process
    saves alone. ``begin``, ``commit`` and ``abort`` are collective over them; what only reads is not,
    except the two methods that say so. ``files`` is for tests that stop a save at an operation.
    """

    def __init__(self, group: Collectives | None = None, *, files: Files | None = None) -> None:
        self.group: Collectives = group if group is not None else LonelyCollectives()
        self._files = files if files is not None else Files()

    # -- saving ----------------------------------------------------------------------------------

    @contextmanager
    def save(self, path: str | Path, *, step: int | None = None) -> Iterator[CheckpointSink]:
        """Give a sink, and commit what was written into it, or give it up where a rank fails. Collective.

        Raises CheckpointError on every rank, with the rank and the cause. What was at ``path`` stays
        until then.
        """
        with whole(self, self.begin(path, step=step)) as sink:
            yield sink

    def begin(self, path: str | Path, *, step: int | None = None) -> CheckpointSink:
        """Open an uncommitted checkpoint beside ``path``, which readers do not see. Collective.

        Removes what dead runs left there. Raises CheckpointError when ``path`` cannot be written, or
        holds files that no checkpoint put there.
        """
        locks: list[Lock | None] = []

        def prepare() -> tuple[str, str] | None:
            if self.group.rank != 0:
                return None
            target, folder, lock = _prepared(self._files, path)
            locks.append(lock)
            return str(target), str(folder)

        made = together(self.group, prepare, "begin to save")[0]
        assert made is not None
        target, folder = map(Path, made)
        sink = CheckpointSink(self._files, folder, target, locks[0] if locks else None, step)
        try:
            together(self.group, lambda: _visible(folder), "see the folder that rank 0 made")
        except CheckpointError:
            self._give_up(sink)
            raise
        return sink

    def commit(self, sink: StateSink) -> None:
        """Make what all ranks wrote durable and visible under its path: all of it, or nothing. Collective."""
        own = _own(sink)
        try:
            parts = together(self.group, own.finish, "save its part")
            parts += self._loose(own, parts)
            together(self.group, lambda: self._publish(own, parts), "commit the checkpoint")
        except CheckpointError:
            self._give_up(own)
            raise
        finally:
            own.release()

    def abort(self, sink: StateSink, cause: BaseException | None = None) -> None:
        """Remove an uncommitted checkpoint. Collective: ranks in ``commit`` raise, naming ``cause``."""
        own = _own(sink)
        try:
            withdraw(self.group, cause)
            self._give_up(own)
        finally:
            own.release()

    def remove(self, path: str | Path) -> None:
        """Remove a committed checkpoint; whatever happens meanwhile, never half of it is left to be read."""
        remove(self._files, located(path))

    def rotate(self, directory: str | Path, keep: int) -> list[str]:
        """Remove all but the ``keep`` newest good checkpoints of ``directory``; return what was removed.

        Call it after the commit, on one rank. Good is what has all its files in their sizes; the
        newest good one is never removed, and nothing newer than the oldest that is kept.
        """
        gone = surplus(checkpoints(Path(directory)), keep)
        for path in gone:
            self.remove(path)
        return [str(path) for path in gone]

    # -- loading ---------------------------------------------------------------------------------

    def open(self, path: str | Path, *, verify: Verify = "hashes") -> CheckpointSource:
        """Return the contents of a committed checkpoint; raise CheckpointError naming what is not as saved.

        ``verify="sizes"`` leaves out the reading of every byte.
        """
        folder = located(path)
        manifest = read_manifest(folder)
        refuse(folder, faults(folder, manifest, verify))
        return CheckpointSource(folder, manifest)

    def open_together(self, path: str | Path) -> CheckpointSource:
        """Do as ``open`` on all ranks, each of which reads a part of the bytes to verify them. Collective."""

        def look() -> None:
            folder = located(path)
            manifest = read_manifest(folder)
            ordered = sorted(manifest.files, key=lambda name: (-manifest.files[name].size, name))
            own = ordered[self.group.rank :: self.group.world_size]
            refuse(folder, faults(folder, manifest, "hashes", own))
            opened.append(CheckpointSource(folder, manifest))

        opened: list[CheckpointSource] = []
        together(self.group, look, "verify the checkpoint")
        return opened[0]

    def open_latest_together(self, directory: str | Path) -> CheckpointSource | None:
        """Do as ``open_latest`` on all ranks, which read the same checkpoint or none. Collective."""
        first = self.group.rank == 0
        # One list for all: another run may commit meanwhile.
        found = together(
            self.group, lambda: _newest_first(Path(directory)) if first else [], "list the checkpoints"
        )[0]
        for path in found:
            try:
                return self.open_together(path)
            except CheckpointError as error:
                if first:
                    _skipped(path, error)
        return None

    def latest(self, directory: str | Path) -> str | None:
        """Return the newest checkpoint of ``directory`` that verifies; log and skip damaged ones."""
        source = self.open_latest(directory)
        return None if source is None else str(source.path)

    def open_latest(self, directory: str | Path) -> CheckpointSource | None:
        """Return the contents of the newest checkpoint that verifies, None when there is none."""
        for path in _newest_first(Path(directory)):
            try:
                return self.open(path)
            except CheckpointError as error:
                _skipped(path, error)
        return None

    def listed(self, directory: str | Path) -> list[str]:
        """Return committed checkpoints, oldest first; those that cannot tell their place are left out."""
        return [str(each.path) for each in checkpoints(Path(directory)) if each.number is not None]

    def look(self, directory: str | Path) -> list[Listed]:
        """Return all committed checkpoints, damaged ones too, for those who show them."""
        return checkpoints(Path(directory))

    # -- inside ----------------------------------------------------------------------------------

    def _loose(self, own: CheckpointSink, parts: list[Part]) -> list[Part]:
        """Return parts of what components wrote by themselves, hashed by all ranks. Collective."""
        known = {path for part in parts for path in part.files}
        first = self.group.rank == 0
        found = together(self.group, lambda: own.loose(known) if first else [], "list its files")[0]
        if not found:
            return []
        share = found[self.group.rank :: self.group.world_size]
        return together(self.group, lambda: Part(files=own.adopt(share)), "read back its files")

    def _publish(self, own: CheckpointSink, parts: list[Part]) -> None:
        if self.group.rank == 0:
            publish(
                self._files,
                own.folder,
                own.target,
                merged(parts),
                number=next_number(own.target.parent),
                world_size=self.group.world_size,
                step=own.step,
            )

    def _give_up(self, own: CheckpointSink) -> None:
        """Remove what was written, once every rank has stopped writing. Collective."""
        if self.group.rank == 0:
            with suppress(OSError):
                discard(self._files, own.folder)
        own.release()
        self.group.barrier()


def _prepared(files: Files, path: str | Path) -> tuple[Path, Path, Lock | None]:
    """Return the real target, the locked folder to write in, and its lock."""
    target = Path(os.path.realpath(path))
    if not target.name:
        raise CheckpointError(f"{str(path)!r} is no place for a checkpoint", fix="name a folder inside it")
    with explaining("make the folder of the checkpoints", target):
        missing = [parent for parent in target.parents if not parent.exists()]
        for parent in reversed(missing):
            with suppress(FileExistsError):
                files.make_folder(parent)
            files.sync_folder(parent.parent)
        tidy(files, target.parent)
    replaceable(target)
    with explaining("begin a checkpoint", target):
        return target, *claim(files, target)


_PATIENCE = 10.0
"""Seconds until a network file system shows a folder to another machine."""


def _visible(folder: Path) -> None:
    """Raise CheckpointError when a rank does not see the folder of the others."""
    limit = time.monotonic() + _PATIENCE
    while not folder.is_dir():
        if time.monotonic() > limit:
            raise CheckpointError(
                "This rank does not see the folder that rank 0 made: they have different file systems",
                where=str(folder),
                fix="save to a file system that all ranks share, or with a group of the ranks of one machine",
            )
        time.sleep(0.05)


def _newest_first(directory: Path) -> list[str]:
    found = checkpoints(directory)
    for each in found:
        if each.number is None:
            _logger.warning("The checkpoint %s is damaged and left out: %s", each.path, why_not(each))
    return [str(each.path) for each in reversed(found) if each.number is not None]


def _skipped(path: str, error: CheckpointError) -> None:
    what = f"{error.what} ({error.where})"
    _logger.warning("The checkpoint %s is damaged, the one before it is tried: %s", path, what)


def _own(sink: StateSink) -> CheckpointSink:
    if not isinstance(sink, CheckpointSink):
        raise CheckpointError(f"A {type(sink).__name__} is no sink of this store", fix="take that of begin()")
    return sink


__all__ = ["CheckpointStore"]
