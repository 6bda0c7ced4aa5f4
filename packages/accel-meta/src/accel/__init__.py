"""Run the same PyTorch loop on one CPU, one accelerator, many accelerators or many machines.

>>> from accel import Accelerator
>>> accelerator = Accelerator()
>>> model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
"""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

from .__about__ import __version__ as __version__

if TYPE_CHECKING:
    from accel_bigmodel import cpu_offload as cpu_offload
    from accel_bigmodel import cpu_offload_with_hook as cpu_offload_with_hook
    from accel_bigmodel import disk_offload as disk_offload
    from accel_bigmodel import dispatch_model as dispatch_model
    from accel_bigmodel import infer_auto_device_map as infer_auto_device_map
    from accel_bigmodel import init_empty_weights as init_empty_weights
    from accel_bigmodel import init_on_device as init_on_device
    from accel_bigmodel import load_checkpoint_and_dispatch as load_checkpoint_and_dispatch
    from accel_bigmodel import load_checkpoint_in_model as load_checkpoint_in_model
    from accel_core.config import AutocastKwargs as AutocastKwargs
    from accel_core.config import DataLoaderConfiguration as DataLoaderConfiguration
    from accel_core.config import DistributedDataParallelKwargs as DistributedDataParallelKwargs
    from accel_core.config import GradScalerKwargs as GradScalerKwargs
    from accel_core.config import InitProcessGroupKwargs as InitProcessGroupKwargs
    from accel_core.config import ProfileKwargs as ProfileKwargs
    from accel_core.enums import DDPCommunicationHookType as DDPCommunicationHookType
    from accel_core.enums import DistributedType as DistributedType
    from accel_core.logging import get_logger as get_logger
    from accel_data import skip_first_batches as skip_first_batches
    from accel_state import AcceleratorState as AcceleratorState
    from accel_state import GradientState as GradientState
    from accel_state import PartialState as PartialState
    from accel_state import find_executable_batch_size as find_executable_batch_size
    from accel_state import synchronize_rng_states as synchronize_rng_states

    from . import utils as utils
    from .accelerator import Accelerator as Accelerator

_NAMES = {
    "Accelerator": ".accelerator",
    "AcceleratorState": "accel_state",
    "AutocastKwargs": "accel_core.config",
    "DDPCommunicationHookType": "accel_core.enums",
    "DataLoaderConfiguration": "accel_core.config",
    "DistributedDataParallelKwargs": "accel_core.config",
    "DistributedType": "accel_core.enums",
    "GradScalerKwargs": "accel_core.config",
    "GradientState": "accel_state",
    "InitProcessGroupKwargs": "accel_core.config",
    "PartialState": "accel_state",
    "ProfileKwargs": "accel_core.config",
    "cpu_offload": "accel_bigmodel",
    "cpu_offload_with_hook": "accel_bigmodel",
    "disk_offload": "accel_bigmodel",
    "dispatch_model": "accel_bigmodel",
    "find_executable_batch_size": "accel_state",
    "get_logger": "accel_core.logging",
    "infer_auto_device_map": "accel_bigmodel",
    "init_empty_weights": "accel_bigmodel",
    "init_on_device": "accel_bigmodel",
    "load_checkpoint_and_dispatch": "accel_bigmodel",
    "load_checkpoint_in_model": "accel_bigmodel",
    "skip_first_batches": "accel_data",
    "synchronize_rng_states": "accel_state",
    "utils": ".utils",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
