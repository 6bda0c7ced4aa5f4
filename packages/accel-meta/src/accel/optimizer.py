"""The documented place of the optimizer wrapper."""

from accel_parallel import AcceleratedOptimizer

__all__ = ["AcceleratedOptimizer"]
