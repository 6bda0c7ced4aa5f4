"""Models that come to the device whole, and go when another one needs the room."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .align import Device, full_device
from .base import ModelHook
from .flow import bring
from .forward import add_hook_to_module, remove_hook_from_module


class CpuOffload(ModelHook):
    """Keep a model on the CPU until its first forward, then on ``execution_device``.

    ``prev_module_hook``: the handle of the model that ran before; that one goes to the CPU first.
    """

    traceable = False

    def __init__(
        self,
        execution_device: Device | None = None,
        prev_module_hook: UserCpuOffloadHook | None = None,
    ) -> None:
        self.prev_module_hook = prev_module_hook
        self.execution_device = default_device() if execution_device is None else execution_device

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Put the model on the CPU."""
        return module.to("cpu")

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Bring the model to the device, after the one before it has left; return the arguments there."""
        device = full_device(self.execution_device)
        if any(each.device != device for each in _all(module)):
            if self.prev_module_hook is not None:
                self.prev_module_hook.offload()
            module.to(device)
        return bring(args, device), bring(kwargs, device)


def _all(module: nn.Module) -> Any:
    yield from module.parameters()
    yield from module.buffers()


class UserCpuOffloadHook:
    """The handle of a model with a `CpuOffload` hook."""

    def __init__(self, model: nn.Module, hook: ModelHook) -> None:
        self.model = model
        self.hook = hook

    def offload(self) -> None:
        """Put the model on the CPU now."""
        self.hook.init_hook(self.model)

    def remove(self) -> None:
        """Take the hook away; the model stays where it is."""
        remove_hook_from_module(self.model)


def cpu_offload_with_hook(
    model: nn.Module,
    execution_device: Device | None = None,
    prev_module_hook: UserCpuOffloadHook | None = None,
) -> tuple[nn.Module, UserCpuOffloadHook]:
    """Keep ``model`` on the CPU until it runs; it stays on ``execution_device`` until told to leave.

    None is the accelerator of this machine, or the CPU. Returns the model and a handle to tell it with;
    ``prev_module_hook`` is the handle of a model that has to leave before this one comes.
    """
    hook = CpuOffload(execution_device, prev_module_hook)
    add_hook_to_module(model, hook, append=True)
    return model, UserCpuOffloadHook(model, hook)


def default_device() -> torch.device:
    """Return the current accelerator of this machine, or the CPU."""
    found = (
        torch.accelerator.current_accelerator(check_available=True)
        if torch.accelerator.is_available()
        else None
    )
    return torch.device("cpu") if found is None else full_device(found)


__all__ = ["CpuOffload", "UserCpuOffloadHook", "cpu_offload_with_hook", "default_device"]
