"""The documented place of the scheduler wrapper."""

from accel_parallel import AcceleratedScheduler

__all__ = ["AcceleratedScheduler"]
