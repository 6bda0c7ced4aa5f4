"""Where the parts of a model go when one device cannot hold them all."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from .maps import check_device_map as check_device_map
    from .maps import clean_device_map as clean_device_map
    from .maps import infer_auto_device_map as infer_auto_device_map
    from .memory import get_balanced_memory as get_balanced_memory
    from .memory import get_max_memory as get_max_memory
    from .plan import DevicePlan as DevicePlan
    from .planner import plan_device_map as plan_device_map
    from .resolve import resolve_device_map as resolve_device_map
    from .units import convert_file_size_to_int as convert_file_size_to_int

_NAMES = {
    "DevicePlan": ".plan",
    "check_device_map": ".maps",
    "clean_device_map": ".maps",
    "convert_file_size_to_int": ".units",
    "get_balanced_memory": ".memory",
    "get_max_memory": ".memory",
    "infer_auto_device_map": ".maps",
    "plan_device_map": ".planner",
    "resolve_device_map": ".resolve",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
