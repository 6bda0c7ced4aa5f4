"""A model that was quantized before, loaded again: its layers become plain linear layers first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from accel_core.errors import PrepareError

from ..wiring import unhook


@contextmanager
def laid_bare(model: nn.Module, *, from_files: bool) -> Iterator[None]:
    """Put linear layers without data where quantized ones are; if what is done here fails, put these back.

    Raises PrepareError unless the weights come ``from_files``: what is quantized has no others.
    """
    swapped: list[tuple[dict[str, Any], str, nn.Linear]] = []
    made: dict[int, nn.Linear] = {}
    for _, parent in list(model.named_modules()):
        for key, child in parent._modules.items():
            if isinstance(child, nn.Linear) and child.__dict__.get("quantized_here"):
                swapped.append((parent._modules, key, child))
    if swapped and not from_files:
        raise PrepareError(
            "The model is quantized already",
            where=type(model).__name__,
            fix="give weights_location to load it again, or use it as it is",
        )
    for children, key, child in swapped:
        if id(child) not in made:
            made[id(child)] = _plain(child)
        children[key] = made[id(child)]
    try:
        yield
    except BaseException:
        for children, key, child in swapped:
            children[key] = child
        raise
    if swapped:
        unhook(model)
        model.__dict__.pop("_apply", None)


def _plain(layer: nn.Linear) -> nn.Linear:
    with torch.device("meta"):
        made = nn.Linear(layer.in_features, layer.out_features, bias=False)
    made.bias = layer.bias
    made.train(layer.training)
    return made


__all__ = ["laid_bare"]
