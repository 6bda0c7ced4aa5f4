"""The weights of a dispatched model, outside of its forwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from .guard import has_offloaded_params, offloading_hook
from .hooks.align import AlignDevicesHook, Device, full_device
from .tensors import all_tensors, moved, owner_of, refresh


@contextmanager
def align_module_device(module: nn.Module, execution_device: Device | None = None) -> Iterator[None]:
    """Have the tensors of ``module`` itself on ``execution_device`` for a while, then back where they were.

    Offloaded ones are there with their values; None puts those on the device where the module computes, and
    leaves others where they are. Values that are assigned or written meanwhile to tensors that are not
    offloaded stay.
    """
    hook = offloading_hook(module)
    if hook is not None:
        with hook.aligned(module, execution_device):
            yield
        return
    if execution_device is None:
        yield
        return
    device = full_device(execution_device)
    before = {name: tensor for name, tensor in all_tensors(module, recurse=False) if tensor.device != device}
    for name, tensor in before.items():
        _put(module, name, moved(tensor, device))
    try:
        yield
    finally:
        for name, tensor in before.items():
            _give_back(module, name, tensor)


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, key, table = owner_of(module, name)
    table[key] = tensor
    refresh(owner)


def _give_back(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put ``tensor`` in its place again, with the values that were written meanwhile."""
    _, key, table = owner_of(module, name)
    now: torch.Tensor | None = table[key]
    if now is None:
        return
    if now.shape != tensor.shape or now.dtype != tensor.dtype:
        _put(module, name, moved(now, tensor.device))
        return
    if now.device.type != "meta":
        with torch.no_grad():
            tensor.copy_(now)
    _put(module, name, tensor)


class DispatchedTensors(Mapping[str, torch.Tensor]):
    """The tensors of a model as ``state_dict`` names them, offloaded ones from where they are kept.

    Nothing is held: a tensor that lies in a file is its pages, and one that was asked for may be dropped.
    """

    def __init__(self, model: nn.Module) -> None:
        self._here = dict(model.state_dict(keep_vars=True))
        self._away: dict[str, tuple[AlignDevicesHook, str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            hook = offloading_hook(module)
            if hook is None:
                continue
            # Quantized layers save their tensors under names that parameters cannot have.
            renamed = module.__dict__.get("saved_as", {})
            for name in hook.offloaded:
                saved = renamed.get(name, name)
                full = f"{path}.{saved}" if path else saved
                if full in self._here:
                    self._away[full] = (hook, name)

    def __getitem__(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self._here[name]
        # Offloaded, and not changed by a forward since then.
        if name in self._away and found.device.type == "meta":
            hook, key = self._away[name]
            return hook.kept(key)
        return found.detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._here)

    def __len__(self) -> int:
        return len(self._here)


__all__ = ["DispatchedTensors", "align_module_device", "has_offloaded_params"]
