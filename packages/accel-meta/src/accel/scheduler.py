"""The documented place of the scheduler wrapper."""

from accel_parallel import AcceleratedScheduler as AcceleratedScheduler

__all__ = ["AcceleratedScheduler"]
