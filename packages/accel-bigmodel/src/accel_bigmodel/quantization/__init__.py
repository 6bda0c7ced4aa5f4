"""Models with quantized weights: made from any checkpoint, saved, loaded, and offloaded."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from .config import BnbQuantizationConfig as BnbQuantizationConfig
    from .config import TorchaoQuantizationConfig as TorchaoQuantizationConfig
    from .loading import load_and_quantize_model as load_and_quantize_model
    from .loading import quantizer_for as quantizer_for

_NAMES = {
    "BnbQuantizationConfig": ".config",
    "TorchaoQuantizationConfig": ".config",
    "load_and_quantize_model": ".loading",
    "quantizer_for": ".loading",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
