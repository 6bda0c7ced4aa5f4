"""PyTorch models larger than a device."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

from .__about__ import __version__ as __version__

if TYPE_CHECKING:
    from .aligning import align_module_device as align_module_device
    from .aligning import has_offloaded_params as has_offloaded_params
    from .dispatch import cpu_offload as cpu_offload
    from .dispatch import cpu_offload_with_hook as cpu_offload_with_hook
    from .dispatch import disk_offload as disk_offload
    from .dispatch import dispatch_model as dispatch_model
    from .dtypes import CustomDtype as CustomDtype
    from .estimate.headers import read_headers as read_headers
    from .estimate.memory import MemoryEstimate as MemoryEstimate
    from .estimate.memory import estimate_memory as estimate_memory
    from .estimate.options import EstimateOptions as EstimateOptions
    from .estimate.shapes import ModelHeaders as ModelHeaders
    from .hooks.align import AlignDevicesHook as AlignDevicesHook
    from .hooks.attach import attach_align_device_hook as attach_align_device_hook
    from .hooks.attach import attach_align_device_hook_on_blocks as attach_align_device_hook_on_blocks
    from .hooks.attach import attach_execution_device_hook as attach_execution_device_hook
    from .hooks.base import ModelHook as ModelHook
    from .hooks.base import SequentialHook as SequentialHook
    from .hooks.casting import LayerwiseCastingHook as LayerwiseCastingHook
    from .hooks.casting import attach_layerwise_casting_hooks as attach_layerwise_casting_hooks
    from .hooks.forward import add_hook_to_module as add_hook_to_module
    from .hooks.forward import remove_hook_from_module as remove_hook_from_module
    from .hooks.forward import remove_hook_from_submodules as remove_hook_from_submodules
    from .hooks.whole import CpuOffload as CpuOffload
    from .hooks.whole import UserCpuOffloadHook as UserCpuOffloadHook
    from .loading.checkpoint import audit_checkpoint as audit_checkpoint
    from .loading.checkpoint import load_checkpoint_and_dispatch as load_checkpoint_and_dispatch
    from .loading.checkpoint import load_checkpoint_in_model as load_checkpoint_in_model
    from .loading.checkpoint import load_state_dict as load_state_dict
    from .loading.report import CheckpointReport as CheckpointReport
    from .offload.block import OffloadedBlock as OffloadedBlock
    from .offload.folder import load_offloaded_weight as load_offloaded_weight
    from .offload.folder import load_offloaded_weights as load_offloaded_weights
    from .offload.folder import offload_state_dict as offload_state_dict
    from .offload.folder import offload_weight as offload_weight
    from .offload.folder import save_offload_index as save_offload_index
    from .offload.lane import Lane as Lane
    from .offload.loader import OffloadedWeightsLoader as OffloadedWeightsLoader
    from .offload.loader import PrefixedDataset as PrefixedDataset
    from .offload.state import get_state_dict_offloaded_model as get_state_dict_offloaded_model
    from .offload.state import offloaded_state as offloaded_state
    from .offload.tied import TiedTensors as TiedTensors
    from .planning.maps import check_device_map as check_device_map
    from .planning.maps import clean_device_map as clean_device_map
    from .planning.maps import infer_auto_device_map as infer_auto_device_map
    from .planning.memory import get_balanced_memory as get_balanced_memory
    from .planning.memory import get_max_memory as get_max_memory
    from .planning.plan import DevicePlan as DevicePlan
    from .planning.planner import plan_device_map as plan_device_map
    from .planning.resolve import resolve_device_map as resolve_device_map
    from .planning.units import convert_file_size_to_int as convert_file_size_to_int
    from .quantization.config import BnbQuantizationConfig as BnbQuantizationConfig
    from .quantization.config import TorchaoQuantizationConfig as TorchaoQuantizationConfig
    from .quantization.loading import load_and_quantize_model as load_and_quantize_model
    from .sizes import calculate_maximum_sizes as calculate_maximum_sizes
    from .sizes import compute_module_sizes as compute_module_sizes
    from .sizes import compute_module_total_buffer_size as compute_module_total_buffer_size
    from .sizes import find_tied_parameters as find_tied_parameters
    from .sizes import get_max_layer_size as get_max_layer_size
    from .skeleton import init_empty_weights as init_empty_weights
    from .skeleton import init_on_device as init_on_device
    from .tensors import extract_submodules_state_dict as extract_submodules_state_dict
    from .tensors import named_module_tensors as named_module_tensors
    from .tensors import retie_parameters as retie_parameters
    from .tensors import set_module_tensor_to_device as set_module_tensor_to_device
    from .weights.reader import CheckpointWeights as CheckpointWeights
    from .weights.reader import open_weights as open_weights

_NAMES = {
    "AlignDevicesHook": ".hooks.align",
    "BnbQuantizationConfig": ".quantization.config",
    "CheckpointReport": ".loading.report",
    "CheckpointWeights": ".weights.reader",
    "CpuOffload": ".hooks.whole",
    "CustomDtype": ".dtypes",
    "DevicePlan": ".planning.plan",
    "EstimateOptions": ".estimate.options",
    "Lane": ".offload.lane",
    "LayerwiseCastingHook": ".hooks.casting",
    "MemoryEstimate": ".estimate.memory",
    "ModelHeaders": ".estimate.shapes",
    "ModelHook": ".hooks.base",
    "OffloadedBlock": ".offload.block",
    "OffloadedWeightsLoader": ".offload.loader",
    "PrefixedDataset": ".offload.loader",
    "SequentialHook": ".hooks.base",
    "TiedTensors": ".offload.tied",
    "TorchaoQuantizationConfig": ".quantization.config",
    "UserCpuOffloadHook": ".hooks.whole",
    "add_hook_to_module": ".hooks.forward",
    "align_module_device": ".aligning",
    "attach_align_device_hook": ".hooks.attach",
    "attach_align_device_hook_on_blocks": ".hooks.attach",
    "attach_execution_device_hook": ".hooks.attach",
    "attach_layerwise_casting_hooks": ".hooks.casting",
    "audit_checkpoint": ".loading.checkpoint",
    "calculate_maximum_sizes": ".sizes",
    "check_device_map": ".planning.maps",
    "clean_device_map": ".planning.maps",
    "compute_module_sizes": ".sizes",
    "compute_module_total_buffer_size": ".sizes",
    "convert_file_size_to_int": ".planning.units",
    "cpu_offload": ".dispatch",
    "cpu_offload_with_hook": ".dispatch",
    "disk_offload": ".dispatch",
    "dispatch_model": ".dispatch",
    "estimate_memory": ".estimate.memory",
    "extract_submodules_state_dict": ".tensors",
    "find_tied_parameters": ".sizes",
    "get_balanced_memory": ".planning.memory",
    "get_max_layer_size": ".sizes",
    "get_max_memory": ".planning.memory",
    "get_state_dict_offloaded_model": ".offload.state",
    "has_offloaded_params": ".aligning",
    "infer_auto_device_map": ".planning.maps",
    "init_empty_weights": ".skeleton",
    "init_on_device": ".skeleton",
    "load_and_quantize_model": ".quantization.loading",
    "load_checkpoint_and_dispatch": ".loading.checkpoint",
    "load_checkpoint_in_model": ".loading.checkpoint",
    "load_offloaded_weight": ".offload.folder",
    "load_offloaded_weights": ".offload.folder",
    "load_state_dict": ".loading.checkpoint",
    "named_module_tensors": ".tensors",
    "offload_state_dict": ".offload.folder",
    "offload_weight": ".offload.folder",
    "offloaded_state": ".offload.state",
    "open_weights": ".weights.reader",
    "plan_device_map": ".planning.planner",
    "read_headers": ".estimate.headers",
    "remove_hook_from_module": ".hooks.forward",
    "remove_hook_from_submodules": ".hooks.forward",
    "resolve_device_map": ".planning.resolve",
    "retie_parameters": ".tensors",
    "save_offload_index": ".offload.folder",
    "set_module_tensor_to_device": ".tensors",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
