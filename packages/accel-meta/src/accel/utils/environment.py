"""The documented place of what changes the environment of a process, and binds it to cores."""

from accel_core.environment import clear_environment, patch_environment
from accel_state.affinity import override_numa_affinity, set_numa_affinity

__all__ = [
    "clear_environment",
    "override_numa_affinity",
    "patch_environment",
    "set_numa_affinity",
]
