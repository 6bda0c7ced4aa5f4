"""The documented place of the states."""

from accel_state import AcceleratorState, GradientState, PartialState

__all__ = ["AcceleratorState", "GradientState", "PartialState"]
