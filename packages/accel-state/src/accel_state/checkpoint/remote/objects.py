"""The operations on a remote store, one method each: through fsspec, repeated while they fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from accel_core.errors import CheckpointError, NotInstalledError, UnknownNameError

from ..address import name_of, scheme_of, shown
from .retry import PATIENCE, persistently
from .trouble import beyond, no_bucket, unreachable

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Found:
    """A name in a folder: of an object of so many bytes, or of a folder, whose ``size`` is None."""

    name: str
    size: int | None


class Objects:
    """List, read, write and remove by URI. Every method raises CheckpointError when it fails for good.

    ``options``: for the driver, as fsspec's ``storage_options``. ``patience``: seconds from the first failure
    of a request to its last try. May be used by several threads.
    """

    def __init__(self, options: Mapping[str, Any] | None = None, patience: float = PATIENCE) -> None:
        self.patience = patience
        self._options = dict(options or {})
        self._systems: dict[tuple[int, str], Any] = {}

    def names(self, uri: str) -> list[Found]:
        """Return what lies in the folder ``uri``, sorted by name; nothing when there is no such folder."""

        def ask(system: Any, path: str) -> list[Found]:
            _forget(system)
            try:
                entries = system.ls(path, detail=True)
            except (FileNotFoundError, NotADirectoryError) as error:
                if no_bucket(error):
                    raise unreachable(error, "list the folder", uri) from error
                return []
            found = {}
            for entry in entries:
                inside = _below(entry["name"], path)
                # Some stores list a folder, or the object of that name, in itself.
                if inside and "/" not in inside:
                    found[inside] = None if entry["type"] == "directory" else int(entry["size"] or 0)
            return [Found(name, size) for name, size in sorted(found.items())]

        return self._do(ask, "list the folder", uri)

    def sizes(self, uri: str) -> dict[str, int]:
        """Return the bytes of every object below ``uri``, by its path from there."""

        def ask(system: Any, path: str) -> dict[str, int]:
            _forget(system)
            try:
                entries = system.find(path, detail=True)
            except FileNotFoundError:
                return {}
            found = {_below(name, path): int(entry["size"] or 0) for name, entry in entries.items()}
            return {name: size for name, size in found.items() if name}

        return self._do(ask, "list the objects", uri)

    def read(self, uri: str, begin: int, end: int) -> bytes:
        """Return what there is from byte ``begin`` to ``end``; raise FileNotFoundError without an object."""

        def ask(system: Any, path: str) -> bytes:
            try:
                data: bytes = system.cat_file(path, start=begin, end=end)
            except Exception as error:
                if beyond(error):
                    return b""
                raise
            return data

        return self._do(ask, "read", uri)

    def write(self, uri: str, data: bytes) -> None:
        """Store an object."""
        self._put(lambda system, path: system.pipe_file(path, data), "write", uri)

    def upload(self, file: Path, uri: str) -> None:
        """Store a file of this machine as an object."""
        self._put(lambda system, path: system.put_file(str(file), path), "upload", uri)

    def remove(self, uri: str) -> None:
        """Remove an object, or all objects below ``uri``; what is not there is no error."""

        def ask(system: Any, path: str) -> None:
            _forget(system)
            try:
                system.rm(path, recursive=True)
            except FileNotFoundError:
                pass

        self._do(ask, "remove", uri)

    def remove_empty(self, uri: str) -> None:
        """Remove the folder ``uri`` where stores have folders and it is empty; failing does no harm."""
        system, path = self._system(uri)
        # Asked for first: some drivers remove a folder with all that is in it.
        if not self.names(uri):
            with suppress(Exception):
                system.rmdir(path)

    def refuse_whole_bucket(self, uri: str) -> None:
        """Raise CheckpointError when ``uri`` is a whole bucket, or what the scheme has instead."""
        path = self._system(uri)[1]
        if "/" not in path.rstrip("/") or not name_of(uri):
            raise CheckpointError(
                f"{shown(uri)} is no place for a checkpoint", where=shown(uri), fix="name a folder inside it"
            )

    def _put(self, put: Callable[[Any, str], object], doing: str, uri: str) -> None:
        try:
            self._do(lambda system, path: _made(system, path, lambda: put(system, path)), doing, uri)
        except FileNotFoundError as error:
            raise unreachable(error, doing, uri) from error

    def _do(self, ask: Callable[[Any, str], _T], doing: str, uri: str) -> _T:
        system, path = self._system(uri)
        return persistently(lambda: ask(system, path), doing, uri, self.patience)

    def _system(self, uri: str) -> tuple[Any, str]:
        """Return fsspec's file system for ``uri``, and the path in it."""
        scheme, _, rest = uri.partition("://")
        # A fork has connections of its own.
        key = (os.getpid(), f"{scheme}://{rest.partition('/')[0]}")
        if key not in self._systems:
            self._systems[key] = connected(uri, self._options)
        system = self._systems[key]
        return system, str(system._strip_protocol(uri)).rstrip("/")


def check_driver(scheme: str) -> None:
    """Import what ``scheme`` needs.

    Raises UnknownNameError for a scheme that nobody knows, NotInstalledError naming what is missing.
    """
    try:
        import fsspec  # type: ignore[import-untyped, unused-ignore]
        import tenacity  # noqa: F401 - needed later, asked for now
    except ImportError:
        raise NotInstalledError("part", "remote checkpoints", "accel-state[remote]") from None
    if scheme not in fsspec.available_protocols():
        raise UnknownNameError("scheme", scheme, fsspec.available_protocols())
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise NotInstalledError("driver for", f"{scheme}://", driver(scheme)) from error


def connected(uri: str, options: Mapping[str, Any]) -> Any:
    """Return fsspec's file system for ``uri``; raise as `check_driver`, or CheckpointError."""
    scheme = scheme_of(uri)
    check_driver(scheme)
    import fsspec

    try:
        # An instance of our own: listings that it remembers would hide what other ranks and runs do.
        system, _ = fsspec.url_to_fs(uri, **{**options, "skip_instance_cache": True})
    except Exception as error:
        raise CheckpointError(
            f"Could not set up the driver for {scheme}://: {type(error).__name__}: {error}",
            where=shown(uri),
            fix="see the documentation of the driver for what it wants; storage_options= are passed to it",
        ) from error
    if getattr(system, "dircache", None) is not None:
        system.dircache.use_listings_cache = False
    return system


def driver(scheme: str) -> str:
    """Return the distribution to install for ``scheme``."""
    from fsspec.registry import known_implementations  # type: ignore[import-untyped, unused-ignore]

    module: str = known_implementations.get(scheme, {}).get("class", "").partition(".")[0]
    return f"fsspec[{scheme}]" if module in {"", "fsspec"} else module


def _forget(system: Any) -> None:
    system.invalidate_cache()


def _below(name: str, path: str) -> str:
    """Return ``name`` as seen from ``path``; nothing when it does not lie below it."""
    front = f"{path}/"
    for each in (name, f"/{name}"):
        if each.startswith(front):
            return each[len(front) :].strip("/")
    return ""


def _made(system: Any, path: str, action: Callable[[], object]) -> None:
    """Run ``action``, after making the folder of ``path`` where the store has folders and lacks this one."""
    try:
        action()
        return
    except FileNotFoundError:
        top = path.partition("/")[0]
        # Object stores would make a bucket of a name that was misspelt.
        if top and not system.exists(top):
            raise FileNotFoundError(f"{top} does not exist") from None
    system.makedirs(path.rpartition("/")[0], exist_ok=True)
    action()


__all__ = ["Found", "Objects", "check_driver", "connected", "driver"]
