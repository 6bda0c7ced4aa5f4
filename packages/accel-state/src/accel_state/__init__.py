"""Processes, devices, collectives and random numbers for PyTorch programs."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

from .__about__ import __version__ as __version__

if TYPE_CHECKING:
    from . import checkpoint as checkpoint
    from . import devices as devices
    from . import memory as memory
    from . import operations as operations
    from . import process as process
    from . import random as random
    from . import weights as weights
    from .accelerator_state import AcceleratorState as AcceleratorState
    from .checkpoint import CheckpointStore as CheckpointStore
    from .collectives import TorchCollectives as TorchCollectives
    from .gradient_state import GradientState as GradientState
    from .memory import clear_device_cache as clear_device_cache
    from .memory import find_executable_batch_size as find_executable_batch_size
    from .memory import release_memory as release_memory
    from .operations import DistributedOperationException as DistributedOperationException
    from .operations import NotATensorError as NotATensorError
    from .operations import TensorInformation as TensorInformation
    from .operations import broadcast as broadcast
    from .operations import broadcast_object_list as broadcast_object_list
    from .operations import concatenate as concatenate
    from .operations import find_batch_size as find_batch_size
    from .operations import find_device as find_device
    from .operations import gather as gather
    from .operations import gather_object as gather_object
    from .operations import get_data_structure as get_data_structure
    from .operations import get_shape as get_shape
    from .operations import honor_type as honor_type
    from .operations import initialize_tensors as initialize_tensors
    from .operations import is_tensor_information as is_tensor_information
    from .operations import is_torch_tensor as is_torch_tensor
    from .operations import listify as listify
    from .operations import pad_across_processes as pad_across_processes
    from .operations import recursively_apply as recursively_apply
    from .operations import reduce as reduce
    from .operations import send_to_device as send_to_device
    from .operations import slice_tensors as slice_tensors
    from .operations import wait_for_everyone as wait_for_everyone
    from .preemption import PreemptionGuard as PreemptionGuard
    from .process import ProcessState as ProcessState
    from .random import set_seed as set_seed
    from .random import synchronize_rng_state as synchronize_rng_state
    from .random import synchronize_rng_states as synchronize_rng_states
    from .state import PartialState as PartialState

_NAMES = {
    "AcceleratorState": ".accelerator_state",
    "CheckpointStore": ".checkpoint.store",
    "DistributedOperationException": ".operations.agreement",
    "GradientState": ".gradient_state",
    "NotATensorError": ".operations.walking",
    "PartialState": ".state",
    "PreemptionGuard": ".preemption",
    "ProcessState": ".process",
    "TensorInformation": ".operations.walking",
    "TorchCollectives": ".collectives",
    "broadcast": ".operations.exchange",
    "broadcast_object_list": ".operations.objects",
    "checkpoint": ".checkpoint",
    "clear_device_cache": ".memory",
    "concatenate": ".operations.walking",
    "devices": ".devices",
    "find_batch_size": ".operations.walking",
    "find_device": ".operations.walking",
    "find_executable_batch_size": ".memory",
    "gather": ".operations.exchange",
    "gather_object": ".operations.objects",
    "get_data_structure": ".operations.walking",
    "get_shape": ".operations.walking",
    "honor_type": ".operations.walking",
    "initialize_tensors": ".operations.walking",
    "is_tensor_information": ".operations.walking",
    "is_torch_tensor": ".operations.walking",
    "listify": ".operations.walking",
    "memory": ".memory",
    "operations": ".operations",
    "pad_across_processes": ".operations.exchange",
    "process": ".process",
    "random": ".random",
    "recursively_apply": ".operations.walking",
    "reduce": ".operations.exchange",
    "release_memory": ".memory",
    "send_to_device": ".operations.moving",
    "set_seed": ".random",
    "slice_tensors": ".operations.walking",
    "synchronize_rng_state": ".random",
    "synchronize_rng_states": ".random",
    "wait_for_everyone": ".operations.exchange",
    "weights": ".weights",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
