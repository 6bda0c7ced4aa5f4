"""Refuse to cast a quantized model, before any of its tensors is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .parted import refuse_cast


class CastGuard:
    """Stands in front of what ``to``, ``half`` and their like of one model do. ``inner``: what stood there.

    An object and no closure, so that a copy of the model is guarded too, and by itself.
    """

    def __init__(self, model: nn.Module, inner: Callable[..., nn.Module] | None) -> None:
        self.model = model
        self.inner = inner

    def __call__(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        """Apply ``fn`` to all tensors of the model, unless it casts them."""
        refuse_cast(fn, "a quantized model")
        if self.inner is not None:
            return self.inner(fn, recurse)
        own: Any = type(self.model)._apply
        own(self.model, fn, recurse)
        return self.model

    def __reduce__(self) -> tuple[Any, ...]:
        return CastGuard, (self.model, self.inner)


def guard_casts(model: nn.Module) -> None:
    """Guard ``model`` against casts of all of it at once."""
    model.__dict__["_apply"] = CastGuard(model, model.__dict__.get("_apply"))


__all__ = ["CastGuard", "guard_casts"]
