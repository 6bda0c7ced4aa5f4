"""What accel asks of a precision policy."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .device import Device

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPlan:
    """Which dtype is used where, as data; None means "as the model has it".

    Strategies that do their own mixed precision (FSDP, DeepSpeed, Megatron-LM) read it instead of
    calling ``Precision.convert``, so that one plan holds for all of them.
    """

    storage: torch.dtype | None = None
    compute: torch.dtype | None = None
    reduce: torch.dtype | None = None
    output: torch.dtype | None = None
    buffers: torch.dtype | None = None


@runtime_checkable
class Scaler(Protocol):
    """Loss scaling for gradients that would underflow; ``torch.amp.GradScaler`` is one."""

    def scale(self, loss: Any) -> Any:
        """Return the scaled loss."""

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of the optimizer's parameters by the scale, once per step."""

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Step the optimizer unless its gradients overflowed."""

    def update(self, new_scale: Any = None) -> None:
        """Adapt the scale after a step."""

    def get_scale(self) -> float:
        """Return the current scale."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state to be saved."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


@runtime_checkable
class Precision(Protocol):
    """What dtype computes, is reduced and is stored, and how a model is made to do so.

    Its factory takes a ``torch.device``. One that lets the user decide how autocast behaves in the models
    that it converts also takes ``enabled`` and ``cache_enabled`` by name, as those of ``torch.autocast``.
    """

    name: str
    """``"no"``, ``"fp16"``, ``"bf16"``, ``"fp8"`` or a third party's."""

    def plan(self) -> PrecisionPlan:
        """Return the dtypes of this policy."""
        ...

    def check(self, device: Device) -> None:
        """Raise CapabilityError with the device's reason if it cannot compute in this precision."""

    def convert(self, model: nn.Module) -> nn.Module:
        """Return ``model`` made to compute in this precision: the same object, its forward changed."""
        ...

    def restore(self, model: nn.Module) -> nn.Module:
        """Undo ``convert``."""
        ...

    def autocast(
        self, *, enabled: bool = True, cache_enabled: bool | None = None
    ) -> AbstractContextManager[None]:
        """Return the context in which operations compute in this precision."""
        ...

    def scaler(self, **settings: Any) -> Scaler | None:
        """Return a new gradient scaler, or None when this precision needs none."""
        ...
