"""PyTorch models larger than a device."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

from .__about__ import __version__ as __version__

if TYPE_CHECKING:
    from .dtypes import CustomDtype as CustomDtype
    from .offload.block import OffloadedBlock as OffloadedBlock
    from .offload.folder import load_offloaded_weight as load_offloaded_weight
    from .offload.folder import load_offloaded_weights as load_offloaded_weights
    from .offload.folder import offload_state_dict as offload_state_dict
    from .offload.folder import offload_weight as offload_weight
    from .offload.folder import save_offload_index as save_offload_index
    from .offload.lane import Lane as Lane
    from .offload.loader import OffloadedWeightsLoader as OffloadedWeightsLoader
    from .offload.loader import PrefixedDataset as PrefixedDataset
    from .offload.tied import TiedTensors as TiedTensors
    from .planning.maps import check_device_map as check_device_map
    from .planning.maps import clean_device_map as clean_device_map
    from .planning.maps import infer_auto_device_map as infer_auto_device_map
    from .planning.memory import get_balanced_memory as get_balanced_memory
    from .planning.memory import get_max_memory as get_max_memory
    from .planning.resolve import resolve_device_map as resolve_device_map
    from .planning.units import convert_file_size_to_int as convert_file_size_to_int
    from .quantization.config import BnbQuantizationConfig as BnbQuantizationConfig
    from .quantization.config import TorchaoQuantizationConfig as TorchaoQuantizationConfig
    from .sizes import calculate_maximum_sizes as calculate_maximum_sizes
    from .sizes import compute_module_sizes as compute_module_sizes
    from .sizes import compute_module_total_buffer_size as compute_module_total_buffer_size
    from .sizes import find_tied_parameters as find_tied_parameters
    from .sizes import get_max_layer_size as get_max_layer_size
    from .skeleton import init_empty_weights as init_empty_weights
    from .skeleton import init_on_device as init_on_device

_NAMES = {
    "BnbQuantizationConfig": ".quantization.config",
    "CustomDtype": ".dtypes",
    "Lane": ".offload.lane",
    "OffloadedBlock": ".offload.block",
    "OffloadedWeightsLoader": ".offload.loader",
    "PrefixedDataset": ".offload.loader",
    "TiedTensors": ".offload.tied",
    "TorchaoQuantizationConfig": ".quantization.config",
    "calculate_maximum_sizes": ".sizes",
    "check_device_map": ".planning.maps",
    "clean_device_map": ".planning.maps",
    "compute_module_sizes": ".sizes",
    "compute_module_total_buffer_size": ".sizes",
    "convert_file_size_to_int": ".planning.units",
    "find_tied_parameters": ".sizes",
    "get_balanced_memory": ".planning.memory",
    "get_max_layer_size": ".sizes",
    "get_max_memory": ".planning.memory",
    "infer_auto_device_map": ".planning.maps",
    "init_empty_weights": ".skeleton",
    "init_on_device": ".skeleton",
    "load_offloaded_weight": ".offload.folder",
    "load_offloaded_weights": ".offload.folder",
    "offload_state_dict": ".offload.folder",
    "offload_weight": ".offload.folder",
    "resolve_device_map": ".planning.resolve",
    "save_offload_index": ".offload.folder",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
