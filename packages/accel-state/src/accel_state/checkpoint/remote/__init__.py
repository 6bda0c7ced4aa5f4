"""Checkpoints behind URIs: object stores and whatever else fsspec reaches."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from .listing import RemoteListed as RemoteListed
    from .objects import Objects as Objects
    from .sink import RemoteSink as RemoteSink
    from .source import RemoteSource as RemoteSource
    from .store import RemoteStore as RemoteStore

_NAMES = {
    "Objects": ".objects",
    "RemoteListed": ".listing",
    "RemoteSink": ".sink",
    "RemoteSource": ".source",
    "RemoteStore": ".store",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
