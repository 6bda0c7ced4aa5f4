"""Which store keeps the checkpoints at a path or URI."""

from __future__ import annotations

import os

from accel_core import plugins
from accel_core.errors import CheckpointError, UnknownNameError
from accel_core.protocols import CheckpointIO, Collectives, LonelyCollectives

from .address import child, is_uri, mangled, normal, parent, scheme_of
from .agreement import together

_LOCAL = "local"
_REMOTE = "fsspec"


def store_for(path: str | os.PathLike[str], group: Collectives | None = None) -> CheckpointIO:
    """Return the store of the checkpoints at ``path``, for the ranks of ``group``.

    Folders of the file system have one, each scheme of URIs the one that a distribution offers under its
    name in the entry points ``accel.checkpoints``, and every other scheme that fsspec knows `RemoteStore`.

    Raises UnknownNameError for a scheme that nobody knows, NotInstalledError naming the driver or extra that
    is missing, CheckpointError for a URI that went through a function for paths.
    """
    own = group if group is not None else LonelyCollectives()
    store: CheckpointIO = plugins.find(plugins.CHECKPOINTS, _name(os.fspath(path)))(own)
    return store


def taken(path: str | os.PathLike[str], group: Collectives | None = None) -> bool:
    """Tell whether a save to ``path`` would replace something, as rank 0 of ``group`` sees it. Collective.

    On a file system anything of that name counts, in other stores committed checkpoints do.
    """
    own, text = group if group is not None else LonelyCollectives(), os.fspath(path)
    return together(own, lambda: own.rank == 0 and _there(text), "look for the checkpoint")[0]


def _there(path: str) -> bool:
    if not is_uri(path):
        return os.path.lexists(path)
    store, uri = store_for(path), normal(path)
    exists = getattr(store, "exists", None)
    if exists is not None:
        return bool(exists(uri))
    return uri in map(normal, store.listed(parent(uri)))


def _name(path: str) -> str:
    if not is_uri(path):
        if mangled(path) and path.partition(":")[0].lower() in _schemes() and os.name != "nt":
            raise CheckpointError(
                f"{path!r} was a URI before a function for paths took a slash from it",
                fix="pass the URI as a string, not as a Path, and put parts together with child()",
            )
        return _LOCAL
    scheme = scheme_of(path)
    offered = set(plugins.names(plugins.CHECKPOINTS)) - {_LOCAL, _REMOTE}
    if scheme in offered:
        return scheme
    known = _schemes()
    if scheme not in known:
        raise UnknownNameError("scheme", scheme, offered | known)
    _check_driver(path)
    return _REMOTE


def _schemes() -> set[str]:
    try:
        import fsspec  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return {"s3", "gs", "gcs", "az", "abfs", "file", "memory"}
    return {name for name in fsspec.available_protocols() if len(name) > 1}


def _check_driver(uri: str) -> None:
    # At once, not when the first checkpoint is to be saved.
    from .remote.objects import check_driver

    check_driver(scheme_of(uri))


__all__ = ["child", "is_uri", "store_for", "taken"]
