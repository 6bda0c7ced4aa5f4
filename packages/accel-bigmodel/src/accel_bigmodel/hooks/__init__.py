"""What runs around the forward of modules: weights that come and go, inputs that follow, casts."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from .align import AlignDevicesHook as AlignDevicesHook
    from .attach import attach_align_device_hook as attach_align_device_hook
    from .attach import attach_align_device_hook_on_blocks as attach_align_device_hook_on_blocks
    from .attach import attach_execution_device_hook as attach_execution_device_hook
    from .base import ModelHook as ModelHook
    from .base import SequentialHook as SequentialHook
    from .casting import LayerwiseCastingHook as LayerwiseCastingHook
    from .casting import attach_layerwise_casting_hooks as attach_layerwise_casting_hooks
    from .forward import add_hook_to_module as add_hook_to_module
    from .forward import remove_hook_from_module as remove_hook_from_module
    from .forward import remove_hook_from_submodules as remove_hook_from_submodules
    from .whole import CpuOffload as CpuOffload
    from .whole import UserCpuOffloadHook as UserCpuOffloadHook
    from .whole import cpu_offload_with_hook as cpu_offload_with_hook

_NAMES = {
    "AlignDevicesHook": ".align",
    "CpuOffload": ".whole",
    "LayerwiseCastingHook": ".casting",
    "ModelHook": ".base",
    "SequentialHook": ".base",
    "UserCpuOffloadHook": ".whole",
    "add_hook_to_module": ".forward",
    "attach_align_device_hook": ".attach",
    "attach_align_device_hook_on_blocks": ".attach",
    "attach_execution_device_hook": ".attach",
    "attach_layerwise_casting_hooks": ".casting",
    "cpu_offload_with_hook": ".whole",
    "remove_hook_from_module": ".forward",
    "remove_hook_from_submodules": ".forward",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
