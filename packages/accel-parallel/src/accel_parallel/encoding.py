"""Optimizer state as JSON and named tensors: no pickle, every value back as it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from accel_core.errors import CheckpointError


def encode(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return ``value`` as JSON; its tensors are put into ``tensors`` under names that start with ``path``.

    Plain numbers, strings, booleans and None stand for themselves; everything else becomes a dict
    with one key that says what it is. Raises CheckpointError for what has no such form.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        # JSON has no infinity and no NaN.
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, torch.Tensor):
        while path in tensors:
            # Keys may have dots in them, so two places can read alike.
            path += "+"
        tensors[path] = value.detach()
        return {"tensor": path}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [encode(item, f"{path}.{number}", tensors) for number, item in enumerate(value)]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: encode(item, f"{path}.{key}", tensors) for key, item in value.items()}}
    raise CheckpointError(
        f"A {type(value).__name__} cannot be written to a checkpoint without pickle",
        where=path,
        fix="keep it out of the optimizer's state and groups, or save it with register_for_checkpointing",
    )


def decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return what ``encode`` was given. Raises CheckpointError when ``value`` is not of its making."""
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, content),) = value.items()
        if kind == "tensor" and content in tensors:
            return tensors[content]
        if kind == "float":
            return float(content)
        if kind == "tuple":
            return tuple(decode(item, tensors) for item in content)
        if kind == "list":
            return [decode(item, tensors) for item in content]
        if kind == "dict":
            return {key: decode(item, tensors) for key, item in content.items()}
    raise CheckpointError(
        f"Optimizer state that this version cannot read: {value!r}"[:300],
        fix="the checkpoint is damaged or from another version: load it with the version that wrote it",
    )


__all__ = ["decode", "encode"]
