"""The accel command line; starts without torch."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

from .__about__ import __version__ as __version__

if TYPE_CHECKING:
    from .main import main as main

_NAMES = {"main": ".main"}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
