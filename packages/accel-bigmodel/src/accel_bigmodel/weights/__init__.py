"""Files of weights, mapped: what a model needs is read from them, once, and nothing else."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from .mapped import Location as Location
    from .reader import CheckpointWeights as CheckpointWeights
    from .reader import open_weights as open_weights

_NAMES = {
    "CheckpointWeights": ".reader",
    "Location": ".mapped",
    "open_weights": ".reader",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
