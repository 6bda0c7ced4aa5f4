"""Where the inputs and the outputs of a module lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from copy import copy
from typing import Any

import torch

from accel_core.moving import move


def device_in(*data: Any) -> torch.device | None:
    """Return the device of the first tensor in nested data, or None."""
    for each in data:
        if isinstance(each, torch.Tensor):
            return each.device
        found = None
        if isinstance(each, Mapping):
            found = device_in(*each.values())
        elif isinstance(each, (list, tuple)):
            found = device_in(*each)
        if found is not None:
            return found
    return None


def send(data: Any, device: torch.device, skip_keys: frozenset[str]) -> Any:
    """Return an output on ``device``: nested containers, and the fields of a data class."""
    if dataclasses.is_dataclass(data) and not isinstance(data, (type, Mapping)) and not hasattr(data, "to"):
        sent = copy(data)
        for field in dataclasses.fields(data):
            if field.name not in skip_keys and hasattr(data, field.name):
                # A frozen one may not be assigned to by others; this copy is ours.
                object.__setattr__(sent, field.name, send(getattr(data, field.name), device, skip_keys))
        return sent
    return move(data, device, skip_keys=skip_keys)


def key_set(
    skip_keys: str | list[str] | tuple[str, ...] | set[str] | frozenset[str] | None,
) -> frozenset[str]:
    """Return keys, one or several, as a set."""
    if skip_keys is None:
        return frozenset()
    return frozenset([skip_keys]) if isinstance(skip_keys, str) else frozenset(skip_keys)


__all__ = ["device_in", "key_set", "send"]
