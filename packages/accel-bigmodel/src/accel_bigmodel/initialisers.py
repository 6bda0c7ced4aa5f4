"""Initialisers that do nothing to what has no memory: a skeleton is built without running them.

A tensor on the meta device has no values, so that writing values into it changes nothing, and only takes
time (on a CPU-built skeleton, most of it: torch works out the result of each operation in Python). While
a skeleton is built, the functions of ``torch.nn.init`` and the methods of tensors that fill in place
return such a tensor at once. Every other tensor is treated as always, and so is every other thread.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import init

_FUNCTIONS = (
    "constant_",
    "dirac_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "sparse_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
)
# What initialisers call, also those that were imported by name, and those that models bring.
_METHODS = (
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "fill_",
    "geometric_",
    "log_normal_",
    "normal_",
    "random_",
    "uniform_",
    "zero_",
)

_Saved = list[tuple[Any, str, Any, Any]]
"""What was replaced: owner, name, the replacement, and what was there; None where it was inherited."""


def skip_while(active: Callable[[], bool]) -> _Saved:
    """Replace the initialisers by ones that return meta tensors at once in threads where ``active()``."""
    saved: _Saved = []
    for owner, name in _places():
        before = getattr(owner, name)
        own = vars(owner).get(name)
        replacement = (
            _skipping_method(before, active) if owner is torch.Tensor else _skipping_function(before, active)
        )
        setattr(owner, name, replacement)
        saved.append((owner, name, replacement, own))
    return saved


def put_back(saved: _Saved) -> None:
    """Undo `skip_while`, but where somebody else has put something of their own since."""
    while saved:
        owner, name, replacement, before = saved.pop()
        if vars(owner).get(name) is not replacement:
            continue
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _places() -> Iterator[tuple[Any, str]]:
    yield from ((init, name) for name in _FUNCTIONS)
    # Modules of torch that took some of them by name.
    for module in (sys.modules["torch.nn.modules.activation"], sys.modules["torch.nn.modules.transformer"]):
        yield from ((module, name) for name in _FUNCTIONS if vars(module).get(name) is getattr(init, name))
    yield from ((torch.Tensor, name) for name in _METHODS if hasattr(torch.Tensor, name))


def _skipping_function(before: Callable[..., Any], active: Callable[[], bool]) -> Callable[..., Any]:
    @functools.wraps(before)
    def initialise(*args: Any, **options: Any) -> Any:
        if active():
            tensor = args[0] if args else options.get("tensor")
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                return tensor
        return before(*args, **options)

    return initialise


def _skipping_method(before: Callable[..., Any], active: Callable[[], bool]) -> Callable[..., Any]:
    @functools.wraps(before)
    def fill(self: torch.Tensor, *args: Any, **options: Any) -> Any:
        if self.is_meta and active():
            return self
        return before(self, *args, **options)

    return fill


__all__ = ["put_back", "skip_while"]
