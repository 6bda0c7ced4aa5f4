"""The flat door: documented settings, enumerations and operations, each imported when it is used."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from accel.extraction import extract_model_from_parallel as extract_model_from_parallel
    from accel_bigmodel import BnbQuantizationConfig as BnbQuantizationConfig
    from accel_bigmodel import CustomDtype as CustomDtype
    from accel_bigmodel import OffloadedWeightsLoader as OffloadedWeightsLoader
    from accel_bigmodel import PrefixedDataset as PrefixedDataset
    from accel_bigmodel import TorchaoQuantizationConfig as TorchaoQuantizationConfig
    from accel_bigmodel import align_module_device as align_module_device
    from accel_bigmodel import audit_checkpoint as audit_checkpoint
    from accel_bigmodel import calculate_maximum_sizes as calculate_maximum_sizes
    from accel_bigmodel import check_device_map as check_device_map
    from accel_bigmodel import clean_device_map as clean_device_map
    from accel_bigmodel import compute_module_sizes as compute_module_sizes
    from accel_bigmodel import compute_module_total_buffer_size as compute_module_total_buffer_size
    from accel_bigmodel import convert_file_size_to_int as convert_file_size_to_int
    from accel_bigmodel import extract_submodules_state_dict as extract_submodules_state_dict
    from accel_bigmodel import find_tied_parameters as find_tied_parameters
    from accel_bigmodel import get_balanced_memory as get_balanced_memory
    from accel_bigmodel import get_max_layer_size as get_max_layer_size
    from accel_bigmodel import get_max_memory as get_max_memory
    from accel_bigmodel import has_offloaded_params as has_offloaded_params
    from accel_bigmodel import infer_auto_device_map as infer_auto_device_map
    from accel_bigmodel import load_and_quantize_model as load_and_quantize_model
    from accel_bigmodel import load_checkpoint_and_dispatch as load_checkpoint_and_dispatch
    from accel_bigmodel import load_checkpoint_in_model as load_checkpoint_in_model
    from accel_bigmodel import load_offloaded_weight as load_offloaded_weight
    from accel_bigmodel import load_offloaded_weights as load_offloaded_weights
    from accel_bigmodel import load_state_dict as load_state_dict
    from accel_bigmodel import named_module_tensors as named_module_tensors
    from accel_bigmodel import offload_state_dict as offload_state_dict
    from accel_bigmodel import offload_weight as offload_weight
    from accel_bigmodel import plan_device_map as plan_device_map
    from accel_bigmodel import retie_parameters as retie_parameters
    from accel_bigmodel import save_offload_index as save_offload_index
    from accel_bigmodel import set_module_tensor_to_device as set_module_tensor_to_device
    from accel_cli import write_basic_config as write_basic_config
    from accel_core.config import AutocastKwargs as AutocastKwargs
    from accel_core.config import DataLoaderConfiguration as DataLoaderConfiguration
    from accel_core.config import DistributedDataParallelKwargs as DistributedDataParallelKwargs
    from accel_core.config import GradientAccumulationPlugin as GradientAccumulationPlugin
    from accel_core.config import GradScalerKwargs as GradScalerKwargs
    from accel_core.config import InitProcessGroupKwargs as InitProcessGroupKwargs
    from accel_core.config import KwargsHandler as KwargsHandler
    from accel_core.config import PreemptionKwargs as PreemptionKwargs
    from accel_core.config import ProfileKwargs as ProfileKwargs
    from accel_core.config import ProjectConfiguration as ProjectConfiguration
    from accel_core.config import TorchDynamoPlugin as TorchDynamoPlugin
    from accel_core.enums import ComputeEnvironment as ComputeEnvironment
    from accel_core.enums import DDPCommunicationHookType as DDPCommunicationHookType
    from accel_core.enums import DistributedType as DistributedType
    from accel_core.enums import DynamoBackend as DynamoBackend
    from accel_core.enums import LoggerType as LoggerType
    from accel_core.enums import PrecisionType as PrecisionType
    from accel_core.enums import RNGType as RNGType
    from accel_core.enums import SageMakerDistributedType as SageMakerDistributedType
    from accel_core.environment import clear_environment as clear_environment
    from accel_core.environment import patch_environment as patch_environment
    from accel_core.logging import get_logger as get_logger
    from accel_parallel import compile_regions as compile_regions
    from accel_parallel import has_compiled_regions as has_compiled_regions
    from accel_parallel import is_compiled_module as is_compiled_module
    from accel_precision import convert_outputs_to_fp32 as convert_outputs_to_fp32
    from accel_precision import convert_to_fp32 as convert_to_fp32
    from accel_precision import get_grad_scaler as get_grad_scaler
    from accel_precision import get_mixed_precision_context_manager as get_mixed_precision_context_manager
    from accel_state import DistributedOperationException as DistributedOperationException
    from accel_state import broadcast as broadcast
    from accel_state import broadcast_object_list as broadcast_object_list
    from accel_state import clear_device_cache as clear_device_cache
    from accel_state import concatenate as concatenate
    from accel_state import find_batch_size as find_batch_size
    from accel_state import find_device as find_device
    from accel_state import find_executable_batch_size as find_executable_batch_size
    from accel_state import gather as gather
    from accel_state import gather_object as gather_object
    from accel_state import get_data_structure as get_data_structure
    from accel_state import get_shape as get_shape
    from accel_state import honor_type as honor_type
    from accel_state import initialize_tensors as initialize_tensors
    from accel_state import is_tensor_information as is_tensor_information
    from accel_state import is_torch_tensor as is_torch_tensor
    from accel_state import listify as listify
    from accel_state import pad_across_processes as pad_across_processes
    from accel_state import recursively_apply as recursively_apply
    from accel_state import reduce as reduce
    from accel_state import release_memory as release_memory
    from accel_state import send_to_device as send_to_device
    from accel_state import set_seed as set_seed
    from accel_state import slice_tensors as slice_tensors
    from accel_state import synchronize_rng_state as synchronize_rng_state
    from accel_state import synchronize_rng_states as synchronize_rng_states
    from accel_state import wait_for_everyone as wait_for_everyone
    from accel_state.affinity import override_numa_affinity as override_numa_affinity
    from accel_state.affinity import set_numa_affinity as set_numa_affinity
    from accel_state.availability import is_bf16_available as is_bf16_available
    from accel_state.availability import is_cuda_available as is_cuda_available
    from accel_state.availability import is_hpu_available as is_hpu_available
    from accel_state.availability import is_ipex_available as is_ipex_available
    from accel_state.availability import is_mlu_available as is_mlu_available
    from accel_state.availability import is_mps_available as is_mps_available
    from accel_state.availability import is_musa_available as is_musa_available
    from accel_state.availability import is_npu_available as is_npu_available
    from accel_state.availability import is_sdaa_available as is_sdaa_available
    from accel_state.availability import is_torch_version as is_torch_version
    from accel_state.availability import is_torch_xla_available as is_torch_xla_available
    from accel_state.availability import is_xpu_available as is_xpu_available
    from accel_state.notebooks import install_xla as install_xla
    from accel_state.saving import load as load
    from accel_state.saving import save as save

    from . import environment as environment
    from . import imports as imports
    from . import modeling as modeling
    from . import offload as offload
    from . import operations as operations
    from . import random as random
    from . import versions as versions
    from .constants import MODEL_NAME as MODEL_NAME
    from .constants import OPTIMIZER_NAME as OPTIMIZER_NAME
    from .constants import RNG_STATE_NAME as RNG_STATE_NAME
    from .constants import SAFE_WEIGHTS_INDEX_NAME as SAFE_WEIGHTS_INDEX_NAME
    from .constants import SAFE_WEIGHTS_NAME as SAFE_WEIGHTS_NAME
    from .constants import SCALER_NAME as SCALER_NAME
    from .constants import SCHEDULER_NAME as SCHEDULER_NAME
    from .constants import WEIGHTS_INDEX_NAME as WEIGHTS_INDEX_NAME
    from .constants import WEIGHTS_NAME as WEIGHTS_NAME

_NAMES = {
    "AutocastKwargs": "accel_core.config",
    "BnbQuantizationConfig": "accel_bigmodel",
    "ComputeEnvironment": "accel_core.enums",
    "CustomDtype": "accel_bigmodel",
    "DDPCommunicationHookType": "accel_core.enums",
    "DataLoaderConfiguration": "accel_core.config",
    "DistributedDataParallelKwargs": "accel_core.config",
    "DistributedOperationException": "accel_state",
    "DistributedType": "accel_core.enums",
    "DynamoBackend": "accel_core.enums",
    "GradScalerKwargs": "accel_core.config",
    "GradientAccumulationPlugin": "accel_core.config",
    "InitProcessGroupKwargs": "accel_core.config",
    "KwargsHandler": "accel_core.config",
    "LoggerType": "accel_core.enums",
    "MODEL_NAME": ".constants",
    "OPTIMIZER_NAME": ".constants",
    "OffloadedWeightsLoader": "accel_bigmodel",
    "PrecisionType": "accel_core.enums",
    "PreemptionKwargs": "accel_core.config",
    "PrefixedDataset": "accel_bigmodel",
    "ProfileKwargs": "accel_core.config",
    "ProjectConfiguration": "accel_core.config",
    "RNGType": "accel_core.enums",
    "RNG_STATE_NAME": ".constants",
    "SAFE_WEIGHTS_INDEX_NAME": ".constants",
    "SAFE_WEIGHTS_NAME": ".constants",
    "SCALER_NAME": ".constants",
    "SCHEDULER_NAME": ".constants",
    "SageMakerDistributedType": "accel_core.enums",
    "TorchDynamoPlugin": "accel_core.config",
    "TorchaoQuantizationConfig": "accel_bigmodel",
    "WEIGHTS_INDEX_NAME": ".constants",
    "WEIGHTS_NAME": ".constants",
    "align_module_device": "accel_bigmodel",
    "audit_checkpoint": "accel_bigmodel",
    "broadcast": "accel_state",
    "broadcast_object_list": "accel_state",
    "calculate_maximum_sizes": "accel_bigmodel",
    "check_device_map": "accel_bigmodel",
    "clean_device_map": "accel_bigmodel",
    "clear_device_cache": "accel_state",
    "clear_environment": "accel_core.environment",
    "compile_regions": "accel_parallel",
    "compute_module_sizes": "accel_bigmodel",
    "compute_module_total_buffer_size": "accel_bigmodel",
    "concatenate": "accel_state",
    "convert_file_size_to_int": "accel_bigmodel",
    "convert_outputs_to_fp32": "accel_precision",
    "convert_to_fp32": "accel_precision",
    "environment": ".environment",
    "extract_model_from_parallel": "accel.extraction",
    "extract_submodules_state_dict": "accel_bigmodel",
    "find_batch_size": "accel_state",
    "find_device": "accel_state",
    "find_executable_batch_size": "accel_state",
    "find_tied_parameters": "accel_bigmodel",
    "gather": "accel_state",
    "gather_object": "accel_state",
    "get_balanced_memory": "accel_bigmodel",
    "get_data_structure": "accel_state",
    "get_grad_scaler": "accel_precision",
    "get_logger": "accel_core.logging",
    "get_max_layer_size": "accel_bigmodel",
    "get_max_memory": "accel_bigmodel",
    "get_mixed_precision_context_manager": "accel_precision",
    "get_shape": "accel_state",
    "has_compiled_regions": "accel_parallel",
    "has_offloaded_params": "accel_bigmodel",
    "honor_type": "accel_state",
    "imports": ".imports",
    "infer_auto_device_map": "accel_bigmodel",
    "initialize_tensors": "accel_state",
    "install_xla": "accel_state.notebooks",
    "is_bf16_available": "accel_state.availability",
    "is_compiled_module": "accel_parallel",
    "is_cuda_available": "accel_state.availability",
    "is_hpu_available": "accel_state.availability",
    "is_ipex_available": "accel_state.availability",
    "is_mlu_available": "accel_state.availability",
    "is_mps_available": "accel_state.availability",
    "is_musa_available": "accel_state.availability",
    "is_npu_available": "accel_state.availability",
    "is_sdaa_available": "accel_state.availability",
    "is_tensor_information": "accel_state",
    "is_torch_tensor": "accel_state",
    "is_torch_version": "accel_state.availability",
    "is_torch_xla_available": "accel_state.availability",
    "is_xpu_available": "accel_state.availability",
    "listify": "accel_state",
    "load": "accel_state.saving",
    "load_and_quantize_model": "accel_bigmodel",
    "load_checkpoint_and_dispatch": "accel_bigmodel",
    "load_checkpoint_in_model": "accel_bigmodel",
    "load_offloaded_weight": "accel_bigmodel",
    "load_offloaded_weights": "accel_bigmodel",
    "load_state_dict": "accel_bigmodel",
    "modeling": ".modeling",
    "named_module_tensors": "accel_bigmodel",
    "offload": ".offload",
    "offload_state_dict": "accel_bigmodel",
    "offload_weight": "accel_bigmodel",
    "operations": ".operations",
    "override_numa_affinity": "accel_state.affinity",
    "pad_across_processes": "accel_state",
    "patch_environment": "accel_core.environment",
    "plan_device_map": "accel_bigmodel",
    "random": ".random",
    "recursively_apply": "accel_state",
    "reduce": "accel_state",
    "release_memory": "accel_state",
    "retie_parameters": "accel_bigmodel",
    "save": "accel_state.saving",
    "save_offload_index": "accel_bigmodel",
    "send_to_device": "accel_state",
    "set_module_tensor_to_device": "accel_bigmodel",
    "set_numa_affinity": "accel_state.affinity",
    "set_seed": "accel_state",
    "slice_tensors": "accel_state",
    "synchronize_rng_state": "accel_state",
    "synchronize_rng_states": "accel_state",
    "versions": ".versions",
    "wait_for_everyone": "accel_state",
    "write_basic_config": "accel_cli",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
