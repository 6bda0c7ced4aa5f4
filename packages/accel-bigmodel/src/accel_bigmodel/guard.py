"""Refuse to move or cast a model whose weights are offloaded or lie on several devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from accel_core.errors import StateError

from .hooks.align import AlignDevicesHook
from .hooks.base import ModelHook, SequentialHook


class MoveGuard:
    """Stands in front of what ``to``, ``cuda``, ``half`` and their like of one model do.

    An object and no closure, so that a copy of the model is guarded too, and by itself.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        """Apply ``fn`` to all tensors of the model, unless that would part weights from their hooks."""
        model = self.model
        own: Any = type(model)._apply
        if not any(isinstance(hook, AlignDevicesHook) for each in model.modules() for hook in hooks_of(each)):
            # The hooks are gone, and with them what there was to guard.
            model.__dict__.pop("_apply", None)
            freed: nn.Module = own(model, fn, recurse)
            return freed
        away = next(offloaded_names(model), None)
        if away is not None:
            raise StateError(
                f"This model cannot be moved or cast: a part of it is offloaded, {away!r} for one",
                where=type(model).__name__,
                fix="remove_hook_from_submodules(model) brings it back; then move it, and dispatch it again",
            )
        devices = {tensor.device for tensor in _tensors(model)}
        if len(devices) > 1 and any(_goes_elsewhere(fn, device) for device in devices):
            raise StateError(
                f"This model cannot be moved: it lies on {', '.join(sorted(map(str, devices)))}, and its "
                "hooks bring inputs there",
                where=type(model).__name__,
                fix="remove_hook_from_submodules(model) first",
            )
        applied: nn.Module = own(model, fn, recurse)
        return applied

    def __reduce__(self) -> tuple[Any, ...]:
        return MoveGuard, (self.model,)


def guard(model: nn.Module) -> None:
    """Guard ``model`` for as long as it has hooks."""
    model.__dict__["_apply"] = MoveGuard(model)


def hooks_of(module: nn.Module) -> Iterator[ModelHook]:
    """Yield the hooks of ``module``, those that run in a row one by one."""
    waiting = [module.__dict__.get("_hf_hook")]
    while waiting:
        hook = waiting.pop(0)
        if isinstance(hook, SequentialHook):
            waiting[:0] = hook.hooks
        elif hook is not None:
            yield hook


def offloading_hook(module: nn.Module) -> AlignDevicesHook | None:
    """Return the hook that keeps weights of ``module`` elsewhere, or None."""
    for hook in hooks_of(module):
        if isinstance(hook, AlignDevicesHook) and hook.offload:
            return hook
    return None


def offloaded_names(model: nn.Module) -> Iterator[str]:
    """Yield all names of the tensors that are in ``model`` during its forwards only."""
    for path, module in model.named_modules(remove_duplicate=False):
        hook = offloading_hook(module)
        if hook is not None:
            yield from (f"{path}.{name}" if path else name for name in hook.offloaded)


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _goes_elsewhere(fn: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> bool:
    return fn(torch.empty(0, device=device)).device != device


def has_offloaded_params(module: nn.Module) -> bool:
    """Tell whether weights of ``module`` itself are kept elsewhere between its forwards."""
    return offloading_hook(module) is not None


__all__ = ["MoveGuard", "guard", "has_offloaded_params", "hooks_of", "offloaded_names", "offloading_hook"]
