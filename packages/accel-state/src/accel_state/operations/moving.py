"""Move nested containers of tensors to a device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from accel_core.nested import rebuild_mapping, rebuild_sequence

_Tensor = torch.Tensor
_NOTHING: frozenset[str] = frozenset()


def send_to_device(
    tensor: Any,
    device: torch.device | str | int,
    non_blocking: bool = False,
    skip_keys: str | Iterable[str] | None = None,
) -> Any:
    """Return ``tensor`` (a tensor or any nesting of them) on ``device``; containers keep their classes.

    Whatever else has a ``to`` method is moved by it, everything else is passed through, and so are
    the values under the mapping keys ``skip_keys``. A tensor that is there already is not copied.
    """
    target = device if type(device) is torch.device else torch.device(device)
    if skip_keys is None:
        skip = _NOTHING
    else:
        skip = frozenset((skip_keys,) if isinstance(skip_keys, str) else skip_keys)
    return _move(tensor, target, non_blocking, skip)


def _move(data: Any, device: torch.device, non_blocking: bool, skip: frozenset[str]) -> Any:
    # Exact classes first: isinstance on Tensor runs Python code, and batches are almost always these.
    cls = type(data)
    if cls is _Tensor:
        return data if data.device == device else data.to(device, non_blocking=non_blocking)
    if cls is dict:
        return {
            key: value if key in skip else _move(value, device, non_blocking, skip)
            for key, value in data.items()
        }
    if cls is list:
        return [_move(item, device, non_blocking, skip) for item in data]
    if cls is tuple:
        return tuple([_move(item, device, non_blocking, skip) for item in data])
    if skip and isinstance(data, Mapping):
        return _move_mapping(data, device, non_blocking, skip)
    # Before tuples and mappings: packed sequences and tokenizer outputs are both, and know how to move.
    to = getattr(data, "to", None)
    if to is not None and not isinstance(data, type):
        return _call(to, device, non_blocking)
    if isinstance(data, (list, tuple)):
        return rebuild_sequence(data, (_move(item, device, non_blocking, skip) for item in data))
    if isinstance(data, Mapping):
        return _move_mapping(data, device, non_blocking, skip)
    return data


def _move_mapping(
    data: Mapping[Any, Any], device: torch.device, non_blocking: bool, skip: frozenset[str]
) -> Any:
    moved = {
        key: value if key in skip else _move(value, device, non_blocking, skip) for key, value in data.items()
    }
    return rebuild_mapping(data, moved)


def _call(to: Any, device: torch.device, non_blocking: bool) -> Any:
    if not non_blocking:
        return to(device)
    try:
        return to(device, non_blocking=True)
    except TypeError:  # a `to` of somebody else's class, without this keyword
        return to(device)


__all__ = ["send_to_device"]
