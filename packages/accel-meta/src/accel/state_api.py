"""What the ``Accelerator`` saves of a run, and how it goes on from it."""

from __future__ import annotations


class StateAPI:
    """The state of a run; nothing yet."""


__all__ = ["StateAPI"]
