"""How processes share one PyTorch model: strategies, optimizer and scheduler wrappers."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

from .__about__ import __version__ as __version__

if TYPE_CHECKING:
    from .backends import check_backend as check_backend
    from .compiling import compile_model as compile_model
    from .compiling import compile_regions as compile_regions
    from .compiling import has_compiled_regions as has_compiled_regions
    from .compiling import is_compiled_module as is_compiled_module
    from .extract import extract_model as extract_model
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
    "check_backend": ".backends",
    "compile_model": ".compiling",
    "compile_regions": ".compiling",
    "extract_model": ".extract",
    "foreign_parameters": ".inspection",
    "has_compiled_regions": ".compiling",
    "is_compiled_module": ".compiling",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
