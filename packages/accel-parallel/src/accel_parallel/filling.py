"""Copy stored tensors into those that are there: no memory of its own, and all cores where they are large."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

Copy = tuple[torch.Tensor, torch.Tensor]
"""Where to, and where from."""

_PIECE = 8 << 20
"""Elements that a thread copies at a time."""
_LARGE = 1 << 20
"""Elements below which threads cost more than they save."""
_MOST_THREADS = 8


def fill(copies: Iterable[Copy]) -> None:
    """Copy each second tensor into the first; on the CPU several threads share the work.

    The launcher gives a process one thread for torch's own operations, while its other cores wait for
    the load to end.
    """
    large: list[Copy] = []
    with torch.no_grad():
        for target, value in copies:
            if _by_pieces(target, value):
                large += _pieces(target, value)
            else:
                target.copy_(value)
        threads = min(_MOST_THREADS, os.cpu_count() or 1, len(large))
        if threads < 2:
            _copy_all(large)
            return
        with ThreadPoolExecutor(threads, "accel-fill") as pool:
            list(pool.map(_copy_all, ([copy] for copy in large)))


def _copy_all(copies: Iterable[Copy]) -> None:
    with torch.no_grad():
        for target, value in copies:
            target.copy_(value)


def _by_pieces(target: torch.Tensor, value: torch.Tensor) -> bool:
    return (
        target.numel() >= _LARGE
        and target.is_cpu
        and value.is_cpu
        and type(value) is torch.Tensor
        and target.is_contiguous()
        and value.is_contiguous()
    )


def _pieces(target: torch.Tensor, value: torch.Tensor) -> Iterator[Copy]:
    flat = target.detach().view(-1), value.view(-1)
    for begin in range(0, target.numel(), _PIECE):
        yield flat[0][begin : begin + _PIECE], flat[1][begin : begin + _PIECE]


def plainly_loaded(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of ``model`` that its modules load by copying alone, by the names in its state.

    Those of modules that load in a way of their own are not among them, and none are where a hook
    watches the loading or the model has its own ``load_state_dict``.
    """
    if type(model).load_state_dict is not nn.Module.load_state_dict:
        return {}
    found: dict[str, torch.Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        if module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks:
            return {}
        if module._state_dict_hooks or module._state_dict_pre_hooks:
            return {}
        if type(module)._load_from_state_dict is not nn.Module._load_from_state_dict:
            continue
        start = f"{prefix}." if prefix else ""
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and type(tensor) in {torch.Tensor, nn.Parameter} and not tensor.is_meta:
                found[start + name] = tensor
    return found


__all__ = ["Copy", "fill", "plainly_loaded"]
