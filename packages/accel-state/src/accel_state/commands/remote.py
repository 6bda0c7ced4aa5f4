"""Checkpoints behind URIs."""

from __future__ import annotations

from accel_core.errors import CapabilityError, CheckpointError

from ..checkpoint.address import name_of, normal, parent, scheme_of, shown
from ..checkpoint.remote.listing import RemoteListed, good
from ..checkpoint.remote.store import RemoteStore
from ..checkpoint.remote.trouble import DamagedError
from ..checkpoint.resolve import store_for
from ..checkpoint.rotation import older
from ..checkpoint.verify import Verify
from .found import Found


class RemoteShelf:
    """What `RemoteStore` reaches. See `Shelf`."""

    def __init__(self, uri: str) -> None:
        store = store_for(uri)
        if not isinstance(store, RemoteStore):
            raise CapabilityError(
                f"The store of {scheme_of(uri)}:// is a {type(store).__name__}, which lists no checkpoints",
                fix="use its own tools",
            )
        self._store = store

    def those(self, path: str) -> list[RemoteListed]:
        """Return the checkpoint at ``path``, or those in it."""
        return self._at(path) or self._store.look(path)

    def one(self, path: str) -> RemoteListed:
        """Return the checkpoint at ``path``."""
        found = self._at(path)
        if not found:
            raise CheckpointError(f"The checkpoint {shown(path)} does not exist", fix="name a checkpoint")
        return found[0]

    def beside(self, each: RemoteListed) -> list[RemoteListed]:
        """Return all checkpoints of its folder."""
        return self._store.look(parent(each.path))

    def surplus(self, folder: str, keep: int) -> list[RemoteListed]:
        """Return those that are older than the ``keep`` newest good ones."""
        return older(self._store.look(folder), keep, good)

    def look(self, each: RemoteListed, verify: Verify) -> Found:
        """Return what there is to say about it; to verify hashes, all of it is fetched."""
        path, name = shown(each.path), name_of(each.path)
        try:
            manifest = each.manifest()
        except DamagedError as error:
            return Found(path, name, verify, (error.what,), each.number)
        wrong: tuple[str, ...] = ()
        try:
            self._store.open(each.path, verify=verify)
        except DamagedError as error:
            wrong = (error.what,)
        return Found(path, name, verify, wrong, each.number, manifest)

    def remove(self, each: RemoteListed) -> None:
        """Remove it."""
        self._store.remove(each.path)

    def _at(self, path: str) -> list[RemoteListed]:
        uri = normal(path)
        return [each for each in self._store.look(parent(uri)) if normal(each.path) == uri]


__all__ = ["RemoteShelf"]
