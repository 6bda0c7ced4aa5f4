"""Where the inputs and the outputs of a module lie."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any

import torch
from torch import nn

from accel_core.nested import rebuild_mapping, rebuild_sequence

_NO_KEYS: frozenset[str] = frozenset()
_PLAIN = frozenset({type(None), bool, int, float, str, bytes, torch.dtype, torch.device, slice})


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


def bring(data: Any, device: torch.device, skip_keys: frozenset[str] = _NO_KEYS) -> Any:
    """Return ``data`` on ``device``; what is there already is the same object, and so is what holds it.

    So a cache that a caller passes is the one that the model fills, unless it has to move: then it is one of
    ``skip_keys``, or a new one. Modules are passed through.
    """
    if isinstance(data, torch.Tensor):
        return data if data.device == device else data.to(device)
    cls = type(data)
    if cls is dict:
        items = {
            key: each if key in skip_keys else bring(each, device, skip_keys) for key, each in data.items()
        }
        return data if _same(items.values(), data.values()) else items
    if cls is tuple or cls is list:
        found = [bring(each, device, skip_keys) for each in data]
        return data if _same(found, data) else cls(found)
    if cls in _PLAIN or isinstance(data, (type, nn.Module)):
        return data
    to = getattr(data, "to", None)
    if callable(to):
        # Packed sequences and tokenizer outputs are containers that know how to move.
        return data if getattr(data, "device", None) == device else to(device)
    return _bring_other(data, device, skip_keys)


def _bring_other(data: Any, device: torch.device, skip_keys: frozenset[str]) -> Any:
    if isinstance(data, Mapping):
        items = {
            key: each if key in skip_keys else bring(each, device, skip_keys) for key, each in data.items()
        }
        return data if _same(items.values(), data.values()) else rebuild_mapping(data, items)
    if isinstance(data, (list, tuple)):
        found = [bring(each, device, skip_keys) for each in data]
        return data if _same(found, data) else rebuild_sequence(data, iter(found))
    if dataclasses.is_dataclass(data):
        return _bring_fields(data, device, skip_keys)
    return data


def _bring_fields(data: Any, device: torch.device, skip_keys: frozenset[str]) -> Any:
    before = {field.name: getattr(data, field.name, None) for field in dataclasses.fields(data)}
    after = {
        name: each if name in skip_keys else bring(each, device, skip_keys) for name, each in before.items()
    }
    if _same(after.values(), before.values()):
        return data
    sent = copy(data)
    for name, each in after.items():
        if each is not before[name]:
            # A frozen one may not be assigned to by others; this copy is ours.
            object.__setattr__(sent, name, each)
    return sent


def _same(one: Iterable[Any], other: Iterable[Any]) -> bool:
    return all(map(operator.is_, one, other))


def key_set(
    skip_keys: str | list[str] | tuple[str, ...] | set[str] | frozenset[str] | None,
) -> frozenset[str]:
    """Return keys, one or several, as a set."""
    if skip_keys is None:
        return frozenset()
    return frozenset([skip_keys]) if isinstance(skip_keys, str) else frozenset(skip_keys)


__all__ = ["bring", "device_in", "key_set"]
