"""What the ``Accelerator`` knows of the end of its time: signals, deadlines, and how to leave."""

from __future__ import annotations


class PreemptionAPI:
    """The end of a run's time; nothing yet."""


__all__ = ["PreemptionAPI"]
