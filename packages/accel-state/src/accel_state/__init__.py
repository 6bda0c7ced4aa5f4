"""Processes, devices, collectives and random numbers for PyTorch programs."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

from .__about__ import __version__ as __version__

if TYPE_CHECKING:
    from . import process as process
    from .collectives import TorchCollectives as TorchCollectives
    from .process import ProcessState as ProcessState
    from .state import PartialState as PartialState

_NAMES = {
    "PartialState": ".state",
    "ProcessState": ".process",
    "TorchCollectives": ".collectives",
    "process": ".process",
}
__all__ = ["__version__", *_NAMES]  # noqa: PLE0604  (a literal would repeat the table)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
