"""PyTorch models larger than a device."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

from .__about__ import __version__ as __version__

if TYPE_CHECKING:
    from .quantization.config import BnbQuantizationConfig as BnbQuantizationConfig
    from .quantization.config import TorchaoQuantizationConfig as TorchaoQuantizationConfig
    from .sizes import calculate_maximum_sizes as calculate_maximum_sizes
    from .sizes import compute_module_sizes as compute_module_sizes
    from .sizes import find_tied_parameters as find_tied_parameters
    from .sizes import get_max_layer_size as get_max_layer_size
    from .skeleton import init_empty_weights as init_empty_weights
    from .skeleton import init_on_device as init_on_device

_NAMES = {
    "BnbQuantizationConfig": ".quantization.config",
    "TorchaoQuantizationConfig": ".quantization.config",
    "calculate_maximum_sizes": ".sizes",
    "compute_module_sizes": ".sizes",
    "find_tied_parameters": ".sizes",
    "get_max_layer_size": ".sizes",
    "init_empty_weights": ".skeleton",
    "init_on_device": ".skeleton",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
