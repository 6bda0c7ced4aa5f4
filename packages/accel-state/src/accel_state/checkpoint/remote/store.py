"""Checkpoints behind URIs: written here, sent by all ranks, committed by one small object that comes last."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from accel_core.errors import CheckpointError
from accel_core.protocols import Collectives, LonelyCollectives, StateSink
from accel_core.trouble import explaining

from ..address import child, normal, shown
from ..agreement import together, withdraw
from ..places import machine
from ..rotation import older
from ..sink import Part
from ..verify import Verify
from ..whole import whole
from .listing import RemoteListed, checkpoints, good, newest, remove, spot, spots, tidy
from .objects import Objects
from .publish import joined, publish, withdrawn
from .record import Commit, folder_of, new_token
from .retry import PATIENCE
from .rooms import enter, root_of, sweep
from .sink import RemoteSink
from .source import RemoteSource
from .transfer import upload
from .trouble import DamagedError
from .waiting import together_slowly

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class RemoteStore:
    """Save and load checkpoints under URIs that fsspec reaches, complete or not there at all.

    ``group``: the ranks that save together; they need not share a file system, but must reach one store.
    ``begin``, ``commit``, ``abort`` and what ends in ``together`` are collective.

    ``storage_options`` are for fsspec's driver. ``local`` is where parts of checkpoints lie on their way, by
    default where temporary files go: it needs room for what the ranks of a machine save at once, and for
    what they read. ``patience``: seconds from the first failure of a request to its last try.
    """

    def __init__(
        self,
        group: Collectives | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
        local: str | os.PathLike[str] | None = None,
        patience: float = PATIENCE,
        objects: Objects | None = None,
    ) -> None:
        self.group: Collectives = group if group is not None else LonelyCollectives()
        self._objects = objects if objects is not None else Objects(storage_options, patience)
        self._local = local
        self._kept: RemoteSource | None = None

    # -- saving ----------------------------------------------------------------------------------

    @contextmanager
    def save(self, path: str, *, step: int | None = None) -> Iterator[RemoteSink]:
        """Give a sink, and commit what was written into it, or give it up where a rank fails. Collective.

        Raises CheckpointError on every rank, with the rank and the cause. What was at ``path`` stays
        until then.
        """
        with whole(self, self.begin(path, step=step)) as sink:
            yield sink

    def begin(self, path: str, *, step: int | None = None) -> RemoteSink:
        """Open an uncommitted checkpoint, which readers do not see. Collective.

        Raises CheckpointError when the store cannot be reached or ``path`` is no place for a checkpoint.
        """
        self._kept = None
        uri = normal(path)

        def prepare() -> str | None:
            self._objects.refuse_whole_bucket(uri)
            if self.group.rank != 0:
                return None
            # Who has no right to look there hears of it now, not when everything is written.
            spot(self._objects, uri)
            return new_token()

        token = together(self.group, prepare, "begin to save")[0]
        assert token is not None
        made: list[RemoteSink] = []
        try:
            together(self.group, lambda: made.append(self._room(uri, token, step)), "begin to save")
        except BaseException:
            for sink in made:
                sink.release()
            raise
        return made[0]

    def commit(self, sink: StateSink) -> None:
        """Send what all ranks wrote, then make it visible: all of it, or nothing. Collective."""
        own = _own(sink)
        try:
            parts = together(self.group, own.finish, "save its part")
            part = together(self.group, lambda: joined(parts), "put the parts together")[0]
            together_slowly(self.group, lambda: self._send(own), "upload its part")
            together(self.group, lambda: self._publish(own, part), "commit the checkpoint")
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

    def remove(self, path: str) -> None:
        """Remove a committed checkpoint; whatever happens meanwhile, never half of it is left to be read."""
        uri = normal(path)
        found = spot(self._objects, uri)
        if not found.records:
            newest(self._objects, uri)  # Says what is there instead.
        remove(self._objects, found)

    def rotate(self, directory: str, keep: int) -> list[str]:
        """Remove all but the ``keep`` newest good checkpoints of ``directory``; return what was removed.

        Call it after the commit, on one rank. Good is what has all its files in their sizes; the
        newest good one is never removed, and nothing newer than the oldest that is kept.
        """
        gone = [each.path for each in older(self.look(directory), keep, good)]
        for path in gone:
            self.remove(path)
        tidy(self._objects, spots(self._objects, normal(directory)), None)
        return gone

    # -- loading ---------------------------------------------------------------------------------

    def open(self, path: str, *, verify: Verify = "hashes") -> RemoteSource:
        """Return the contents of a committed checkpoint; raise CheckpointError naming what is not as saved.

        Every file is fetched to this machine. With ``verify="sizes"`` each is when it is first asked for.
        """
        uri = normal(path)
        kept, self._kept = self._kept, None
        if kept is not None and kept.path == uri and kept.commit == newest(self._objects, uri):
            return kept  # By latest(), which read every byte a moment ago.
        source = self._source(uri, newest(self._objects, uri))
        source.check_sizes()
        if verify == "hashes":
            source.fetch(source.manifest.files)
            source.check_headers()
        return source

    def open_together(self, path: str) -> RemoteSource:
        """Do as ``open`` on all ranks, each of which fetches a part of the files to verify them. Collective.

        On one machine every file is fetched once. A rank on another machine fetches what it needs there when
        it asks for it, so ranks that read their own parts never fetch the whole.
        """
        uri, rank, world = normal(path), self.group.rank, self.group.world_size
        opened: list[RemoteSource] = []
        first = self._all(
            lambda: None if rank else (newest(self._objects, uri), secrets.token_hex(8)), "read the record"
        )[0]
        assert first is not None
        commit, token = first

        def look() -> str:
            source = self._source(uri, commit, token)
            if rank == 0:
                source.check_sizes()
            source.fetch(source.share(rank, world))
            source.check_headers()
            opened.append(source)
            return _here(source)

        places = self._all(look, "verify the checkpoint")
        for other, place in enumerate(places):
            if place == places[rank]:
                opened[0].trust(opened[0].share(other, world))
        return opened[0]

    def open_latest_together(self, directory: str) -> RemoteSource | None:
        """Do as ``open_latest`` on all ranks, which read the same checkpoint or none. Collective."""
        first = self.group.rank == 0
        # One list for all: another run may commit meanwhile.
        found = together(
            self.group, lambda: self._newest_first(directory) if first else [], "list the checkpoints"
        )[0]
        for path in found:
            try:
                return self.open_together(path)
            except DamagedError as error:
                if first:
                    _skipped(path, error)
        return None

    def latest(self, directory: str) -> str | None:
        """Return the newest checkpoint of ``directory`` that verifies; log and skip damaged ones."""
        # Kept, so that who opens it next does not fetch it again.
        self._kept = self.open_latest(directory)
        return None if self._kept is None else self._kept.path

    def open_latest(self, directory: str) -> RemoteSource | None:
        """Return the contents of the newest checkpoint that verifies, None when there is none.

        Raises CheckpointError when the store cannot be reached: that says nothing against a checkpoint.
        """
        for path in self._newest_first(directory):
            try:
                return self.open(path)
            except DamagedError as error:
                _skipped(path, error)
        return None

    def exists(self, path: str) -> bool:
        """Tell whether a committed checkpoint is at ``path``, damaged or not."""
        return bool(spot(self._objects, normal(path)).records)

    def close(self) -> None:
        """Let go of what ``latest`` fetched and nobody opened."""
        self._kept = None

    def listed(self, directory: str) -> list[str]:
        """Return committed checkpoints, oldest first; those that cannot tell their place are left out."""
        return [each.path for each in self.look(directory) if each.number is not None]

    def look(self, directory: str) -> list[RemoteListed]:
        """Return all committed checkpoints, damaged ones too, for those who show them."""
        return checkpoints(self._objects, normal(directory))

    # -- inside ----------------------------------------------------------------------------------

    def _all(self, action: Callable[[], _T], doing: str) -> list[_T]:
        """Do as `together_slowly`, and raise DamagedError on all ranks where one finds damage. Collective."""

        def guarded() -> _T | DamagedError:
            try:
                return action()
            except DamagedError as error:
                return error

        results: list[_T] = []
        for each in together_slowly(self.group, guarded, doing):
            if isinstance(each, DamagedError):
                raise each
            results.append(each)
        return results

    def _room(self, uri: str, token: str, step: int | None) -> RemoteSink:
        root = root_of(self._local)
        sweep(root)
        room = enter(root, f"write-{token}-{self.group.rank}-{secrets.token_hex(4)}")
        with explaining("make a folder for a part of the checkpoint", room.path):
            (room.path / "files").mkdir()
        return RemoteSink(room, uri, token, step)

    def _source(self, uri: str, commit: Commit, token: str = "") -> RemoteSource:
        return RemoteSource(self._objects, uri, commit, root_of(self._local), token)

    def _send(self, own: RemoteSink) -> None:
        upload(self._objects, own.folder, own.part.files, child(own.uri, folder_of(own.token)))

    def _publish(self, own: RemoteSink, part: Part) -> None:
        if self.group.rank == 0:
            publish(self._objects, own.uri, own.token, part, world_size=self.group.world_size, step=own.step)

    def _give_up(self, own: RemoteSink) -> None:
        """Remove what was sent, once every rank has stopped sending. Collective."""
        if self.group.rank == 0:
            with suppress(CheckpointError):
                withdrawn(self._objects, own.uri, own.token)
        own.release()
        self.group.barrier()

    def _newest_first(self, directory: str) -> list[str]:
        found = self.look(directory)
        for each in found:
            if each.number is None:
                _logger.warning("The checkpoint %s is damaged and left out: %s", shown(each.path), each.fault)
        return [each.path for each in reversed(found) if each.number is not None]


def _here(source: RemoteSource) -> str:
    return f"{machine()}:{source.room.path}"


def _skipped(path: str, error: CheckpointError) -> None:
    what = f"{error.what} ({error.where})"
    _logger.warning("The checkpoint %s is damaged, the one before it is tried: %s", shown(path), what)


def _own(sink: StateSink) -> RemoteSink:
    if not isinstance(sink, RemoteSink):
        raise CheckpointError(f"A {type(sink).__name__} is no sink of this store", fix="take that of begin()")
    return sink


__all__ = ["RemoteStore"]
