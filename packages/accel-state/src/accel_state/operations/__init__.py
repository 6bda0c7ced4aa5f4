"""Operations on nested containers of tensors, within a process and across processes."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from .agreement import DistributedOperationException as DistributedOperationException
    from .exchange import broadcast as broadcast
    from .exchange import gather as gather
    from .exchange import pad_across_processes as pad_across_processes
    from .exchange import reduce as reduce
    from .exchange import wait_for_everyone as wait_for_everyone
    from .moving import send_to_device as send_to_device
    from .objects import broadcast_object_list as broadcast_object_list
    from .objects import gather_object as gather_object
    from .walking import NotATensorError as NotATensorError
    from .walking import TensorInformation as TensorInformation
    from .walking import concatenate as concatenate
    from .walking import find_batch_size as find_batch_size
    from .walking import find_device as find_device
    from .walking import get_data_structure as get_data_structure
    from .walking import get_shape as get_shape
    from .walking import honor_type as honor_type
    from .walking import initialize_tensors as initialize_tensors
    from .walking import is_tensor_information as is_tensor_information
    from .walking import is_torch_tensor as is_torch_tensor
    from .walking import listify as listify
    from .walking import recursively_apply as recursively_apply
    from .walking import slice_tensors as slice_tensors

_NAMES = {
    "DistributedOperationException": ".agreement",
    "NotATensorError": ".walking",
    "TensorInformation": ".walking",
    "broadcast": ".exchange",
    "broadcast_object_list": ".objects",
    "concatenate": ".walking",
    "find_batch_size": ".walking",
    "find_device": ".walking",
    "gather": ".exchange",
    "gather_object": ".objects",
    "get_data_structure": ".walking",
    "get_shape": ".walking",
    "honor_type": ".walking",
    "initialize_tensors": ".walking",
    "is_tensor_information": ".walking",
    "is_torch_tensor": ".walking",
    "listify": ".walking",
    "pad_across_processes": ".exchange",
    "recursively_apply": ".walking",
    "reduce": ".exchange",
    "send_to_device": ".moving",
    "slice_tensors": ".walking",
    "wait_for_everyone": ".exchange",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
