"""Build a model without its weights: every parameter goes to one device at the moment it is registered."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .collecting import Thresholds, postpone, resume
from .initialisers import put_back, skip_while


class _Key(weakref.ref[torch.Tensor]):
    """A tensor by identity, held weakly. The number of one that is gone may be that of another."""

    __slots__ = ("number",)
    number: int


class _Target:
    """One active context: where tensors go, and what was moved already."""

    def __init__(self, device: torch.device, include_buffers: bool) -> None:
        self.device = device
        self.include_buffers = include_buffers
        # A tensor that is registered twice must stay one tensor. Held weakly, so that the memory of what
        # was moved is given back at once.
        self._moved: dict[int, tuple[_Key, torch.Tensor]] = {}
        self._on_gone = self._forget

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        # "cuda" without an index is any of them.
        device = self.device
        here = tensor.device
        if here == device or (here.type == device.type and device.index in (None, here.index)):
            return tensor
        known = self._moved.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        moved = _copy_to(tensor, device)
        key = _Key(tensor, self._on_gone)
        key.number = id(tensor)
        self._moved[key.number] = (key, moved)
        return moved

    def _forget(self, key: weakref.ref[torch.Tensor]) -> None:
        assert isinstance(key, _Key)
        known = self._moved.get(key.number)
        if known is not None and known[0] is key:
            del self._moved[key.number]


def _copy_to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return ``tensor`` on ``device``: same class, same ``requires_grad``, same attributes."""
    cls: Any = type(tensor)
    if cls is nn.Parameter and device.type == "meta" and tensor.layout is torch.strided:
        moved: torch.Tensor = nn.Parameter(torch.empty_like(tensor, device=device), tensor.requires_grad)
        if tensor.__dict__:
            moved.__dict__.update(tensor.__dict__)
        return moved
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        # What a lazy module registers has no data yet; it takes shape on its device later.
        lazy: torch.Tensor = cls(requires_grad=tensor.requires_grad, device=device, dtype=tensor.dtype)
        return lazy
    data = tensor.detach().to(device)
    if not isinstance(tensor, nn.Parameter):
        return data.requires_grad_(tensor.requires_grad)
    moved = cls(data, requires_grad=tensor.requires_grad)
    moved.__dict__.update(tensor.__dict__)
    return moved


class _Contexts(threading.local):
    """The contexts that this thread has entered; other threads build their models as always."""

    def __init__(self) -> None:
        self.stack: list[_Target] = []


_contexts = _Contexts()
_lock = threading.Lock()
_entered = 0
_hooks: list[Any] = []
_skipped: list[Any] = []
_postponed: list[Thresholds | None] = []


def _inside() -> bool:
    return bool(_contexts.stack)


def _on_parameter(_module: nn.Module, _name: str, tensor: torch.Tensor | None) -> Any:
    if tensor is None or not _contexts.stack:
        return None
    return _contexts.stack[-1].move(tensor)


def _on_buffer(_module: nn.Module, _name: str, tensor: torch.Tensor | None) -> Any:
    if tensor is None or not _contexts.stack or not _contexts.stack[-1].include_buffers:
        return None
    return _contexts.stack[-1].move(tensor)


def _install() -> None:
    """Install the hooks. They are for the whole process, so they stay while any thread is in a context."""
    global _entered
    with _lock:
        _entered += 1
        if _entered == 1:
            _hooks.append(register_module_parameter_registration_hook(_on_parameter))
            _hooks.append(register_module_buffer_registration_hook(_on_buffer))
            _skipped.extend(skip_while(_inside))
            _postponed.append(postpone())


def _remove() -> None:
    global _entered
    with _lock:
        _entered -= 1
        if _entered == 0:
            while _hooks:
                _hooks.pop().remove()
            put_back(_skipped)
            resume(_postponed.pop())


@contextmanager
def init_on_device(device: torch.device | str | int, include_buffers: bool | None = None) -> Iterator[None]:
    """Put every parameter on ``device`` the moment a module registers it.

    ``include_buffers``: buffers too; None means no, because modules compute with their buffers
    while they are built. Weights that are tied stay tied. Contexts nest (the innermost holds) and
    affect the thread that entered them only.
    """
    target = _Target(torch.device(device), bool(include_buffers))
    _install()
    _contexts.stack.append(target)
    try:
        yield
    finally:
        _contexts.stack.remove(target)
        _remove()


@contextmanager
def init_empty_weights(include_buffers: bool | None = None) -> Iterator[None]:
    """Build models of any size without memory for their weights: parameters go to the meta device.

    Such a model knows its shapes and dtypes but holds no data; load a checkpoint before using it.
    ``include_buffers`` as in `init_on_device`.
    """
    with init_on_device("meta", include_buffers=include_buffers):
        yield


__all__ = ["init_empty_weights", "init_on_device"]
