"""Notice gradients that ranks compute but do not average: without this they drift apart in silence."""

from __future__ import annotations

from typing import Any
from weakref import ref

import torch
from torch import nn

from accel_core.errors import CollectiveError


class ReductionWatch:
    """Watch one model: every backward that reaches its parameters must follow a forward of its container.

    The container averages gradients once per forward. A method of the inner module other than
    ``forward``, or a second backward through the same forward, leaves each rank with gradients of
    its own. Hooks on the first and the last trainable parameter see that; they cost about a
    microsecond each. What happens under ``no_sync`` is meant to stay local and is not looked at.

    The container averages what was trainable when it was made, and nothing else. A model without
    anything trainable has no container; it is watched as it is.
    """

    __slots__ = ("__weakref__", "_frozen", "_hooks", "_model", "armed", "name", "reached")

    def __init__(self, name: str, model: nn.Module) -> None:
        self.name = name
        self.armed = False
        """A forward was seen whose gradients the container will average."""
        self.reached = False
        """Gradients arrived since that should have been averaged."""
        self._model = ref(model)
        self._frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        self._hooks: list[Any] = []
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if trainable:
            self._hooks.append(model.register_forward_pre_hook(self._arm))
            for parameter in dict.fromkeys((trainable[0], trainable[-1])):
                self._hooks.append(
                    parameter.register_post_accumulate_grad_hook(self._reach)  # type: ignore[no-untyped-call]
                )

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()

    def _arm(self, module: nn.Module, args: Any) -> None:
        if module.require_backward_grad_sync and torch.is_grad_enabled():
            self.armed = True

    def _reach(self, parameter: torch.Tensor) -> None:
        if self._averages():
            self.reached = True

    def _averages(self) -> bool:
        model = self._model()
        return model is not None and getattr(model, "require_backward_grad_sync", True)

    def check(self) -> None:
        """Raise CollectiveError when gradients arrived that should have been averaged and were not."""
        if self.reached:
            averaged, self.armed, self.reached = self.armed, False, False
            if not averaged:
                raise CollectiveError(
                    f"The gradients of the model of unit {self.name!r} were not averaged: this backward "
                    "reached its parameters without a forward of the prepared model before it",
                    where="a method of the inner model was called, or one forward had two backwards",
                    fix="call the prepared model itself (let its forward choose what to do), and add up "
                    "losses before one backward; for gradients of this rank alone use no_sync",
                )
        for parameter in self._frozen:
            if parameter.requires_grad and parameter.grad is not None and self._averages():
                self._refuse(parameter)

    def _refuse(self, thawed: nn.Parameter) -> None:
        model = self._model()
        names = [] if model is None else [n for n, own in model.named_parameters() if own is thawed]
        raise CollectiveError(
            f"The gradients of the model of unit {self.name!r} were not averaged: a parameter that was "
            "frozen when the model was prepared is trained now, and each rank has its own gradient for it",
            where=", ".join(names) or f"a parameter of shape {tuple(thawed.shape)}",
            fix="set requires_grad before prepare(); to thaw it later call free_memory(), and prepare the "
            "model of unwrap_model() again with a new optimizer",
        )


__all__ = ["ReductionWatch"]
