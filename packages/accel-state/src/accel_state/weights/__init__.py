"""Model weights as files that other libraries read: one file, or shards with an index."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from accel_core.sizes import parse_size as parse_size

    from .reader import Weights as Weights
    from .reader import read as read
    from .writer import save as save

_NAMES = {
    "Weights": ".reader",
    "parse_size": "accel_core.sizes",
    "read": ".reader",
    "save": ".writer",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
