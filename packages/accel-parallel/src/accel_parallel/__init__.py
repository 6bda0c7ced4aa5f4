"""How processes share one PyTorch model: strategies, optimizer and scheduler wrappers."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

from .__about__ import __version__ as __version__

if TYPE_CHECKING:
    from .gradients import TorchGradients as TorchGradients
    from .inspection import foreign_parameters as foreign_parameters
    from .optimizer import AcceleratedOptimizer as AcceleratedOptimizer
    from .scheduler import AcceleratedScheduler as AcceleratedScheduler
    from .states import PlainState as PlainState
    from .strategies.ddp import DataParallel as DataParallel
    from .strategies.single import Single as Single

_NAMES = {
    "AcceleratedOptimizer": ".optimizer",
    "AcceleratedScheduler": ".scheduler",
    "DataParallel": ".strategies.ddp",
    "PlainState": ".states",
    "Single": ".strategies.single",
    "TorchGradients": ".gradients",
    "foreign_parameters": ".inspection",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
