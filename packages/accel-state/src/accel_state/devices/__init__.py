"""Kinds of hardware, one module each; nothing is imported before it is named."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from .base import TorchDevice as TorchDevice
    from .choose import detect as detect
    from .choose import device_names as device_names
    from .choose import hardware_of as hardware_of

_NAMES = {
    "TorchDevice": ".base",
    "detect": ".choose",
    "device_names": ".choose",
    "hardware_of": ".choose",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
