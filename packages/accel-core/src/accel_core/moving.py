"""Move nested containers to a device: whatever has a ``to`` method goes, so no tensor library is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .nested import rebuild_mapping, rebuild_sequence

if TYPE_CHECKING:
    import torch

_NO_KEYS: frozenset[str] = frozenset()
_THINGS: set[type] = set()
"""Classes with a ``to`` and a ``device`` of their own that are no containers: tensors, mostly.

A plain set: asking a weak one takes longer than what is saved here.
"""


def move(
    data: Any, device: torch.device, *, non_blocking: bool = False, skip_keys: frozenset[str] = _NO_KEYS
) -> Any:
    """Return ``data`` on ``device``; containers keep their classes, and what is there already is not copied.

    Objects with a ``to`` method are moved by it, everything else is passed through, and so are the
    values under the mapping keys ``skip_keys``.
    """
    return _move(data, device, non_blocking, skip_keys)


def _move(data: Any, device: torch.device, non_blocking: bool, skip: frozenset[str]) -> Any:
    # Exact classes first: batches are almost always these.
    cls = type(data)
    if cls in _THINGS:
        return data if data.device == device else _call(data.to, device, non_blocking)
    if cls is dict:
        return _values(data, device, non_blocking, skip)
    if cls is list or cls is tuple:
        # What is there already is passed on here, as in _values: a call for each costs more than the look.
        return cls(
            [
                item
                if type(item) in _THINGS and item.device == device
                else _move(item, device, non_blocking, skip)
                for item in data
            ]
        )
    if skip and isinstance(data, Mapping):
        return rebuild_mapping(data, _values(data, device, non_blocking, skip))
    # Before tuples and mappings: packed sequences and tokenizer outputs are both, and know how to move.
    to = getattr(data, "to", None)
    if to is not None and not isinstance(data, type):
        if hasattr(cls, "to") and hasattr(cls, "device") and not isinstance(data, (tuple, Mapping)):
            _THINGS.add(cls)
        return data if getattr(data, "device", None) == device else _call(to, device, non_blocking)
    if isinstance(data, (list, tuple)):
        return rebuild_sequence(data, (_move(item, device, non_blocking, skip) for item in data))
    if isinstance(data, Mapping):
        return rebuild_mapping(data, _values(data, device, non_blocking, skip))
    return data


def _values(
    data: Mapping[Any, Any], device: torch.device, non_blocking: bool, skip: frozenset[str]
) -> dict[Any, Any]:
    if not skip:
        return {
            key: value
            if type(value) in _THINGS and value.device == device
            else _move(value, device, non_blocking, skip)
            for key, value in data.items()
        }
    return {
        key: value if key in skip else _move(value, device, non_blocking, skip) for key, value in data.items()
    }


def _call(to: Any, device: torch.device, non_blocking: bool) -> Any:
    if not non_blocking:
        return to(device)
    try:
        return to(device, non_blocking=True)
    except TypeError:  # a `to` of somebody else's class, without this keyword
        return to(device)


__all__ = ["move"]
