"""The documented place of questions about versions."""

from accel_state.availability import is_torch_version

__all__ = ["is_torch_version"]
