"""The part of ``Accelerator`` that is beside the loop: triggers and the profiler."""

from __future__ import annotations


class ToolsAPI:
    """Agree on a signal between ranks, and measure where time goes."""
