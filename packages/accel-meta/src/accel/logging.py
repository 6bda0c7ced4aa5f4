"""The documented place of the rank-aware loggers."""

from accel_core.logging import get_logger

__all__ = ["get_logger"]
