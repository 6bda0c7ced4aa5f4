"""The accel command line; starts without torch."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

from .__about__ import __version__ as __version__

if TYPE_CHECKING:
    from .basic_config import write_basic_config as write_basic_config
    from .main import main as main

_NAMES = {"main": ".main", "write_basic_config": ".basic_config"}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
