"""Notice gradients that ranks compute but do not average: without this they drift apart in silence."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from accel_core.errors import CollectiveError


class ReductionWatch:
    """Watch one container: every backward that reaches its parameters must follow a forward of the container.

    The container averages gradients once per forward. A method of the inner module other than
    ``forward``, or a second backward through the same forward, leaves each rank with gradients of
    its own. Hooks on the first and the last trainable parameter see that; they cost about a
    microsecond each.
    """

    __slots__ = ("__weakref__", "armed", "name", "reached")

    def __init__(self, name: str, container: DistributedDataParallel) -> None:
        self.name = name
        self.armed = False
        self.reached = False
        container.register_forward_pre_hook(self._arm)
        trainable = [parameter for parameter in container.parameters() if parameter.requires_grad]
        for parameter in dict.fromkeys((trainable[0], trainable[-1])):
            parameter.register_post_accumulate_grad_hook(self._reach)  # type: ignore[no-untyped-call]

    def _arm(self, module: torch.nn.Module, args: Any) -> None:
        if torch.is_grad_enabled():
            self.armed = True

    def _reach(self, parameter: torch.Tensor) -> None:
        self.reached = True

    def check(self, container: DistributedDataParallel) -> None:
        """Raise CollectiveError when gradients arrived that should have been averaged and were not."""
        if not self.reached or not container.require_backward_grad_sync:
            return
        averaged, self.armed, self.reached = self.armed, False, False
        if not averaged:
            raise CollectiveError(
                f"The gradients of the model of unit {self.name!r} were not averaged: this backward reached "
                "its parameters without a forward of the prepared model before it",
                where="a method of the inner model was called, or one forward had two backwards",
                fix="call the prepared model itself (let its forward choose what to do), and add up losses "
                "before one backward; for gradients of this rank alone use no_sync",
            )


__all__ = ["ReductionWatch"]
