"""The documented place of the states."""

from accel_state import AcceleratorState as AcceleratorState
from accel_state import GradientState as GradientState
from accel_state import PartialState as PartialState

__all__ = ["AcceleratorState", "GradientState", "PartialState"]
