"""Run the same PyTorch loop on one CPU, one accelerator, many accelerators or many machines.

>>> from accel import Accelerator
>>> accelerator = Accelerator()
>>> model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
"""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

from .__about__ import __version__ as __version__

if TYPE_CHECKING:
    from accel_bigmodel import init_empty_weights as init_empty_weights
    from accel_core.logging import get_logger as get_logger
    from accel_data import skip_first_batches as skip_first_batches
    from accel_state import AcceleratorState as AcceleratorState
    from accel_state import GradientState as GradientState
    from accel_state import PartialState as PartialState

    from . import utils as utils
    from .accelerator import Accelerator as Accelerator

_NAMES = {
    "Accelerator": ".accelerator",
    "AcceleratorState": "accel_state",
    "GradientState": "accel_state",
    "PartialState": "accel_state",
    "get_logger": "accel_core.logging",
    "init_empty_weights": "accel_bigmodel",
    "skip_first_batches": "accel_data",
    "utils": ".utils",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
