"""Moving batches to a device, decided once per iteration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from accel_core.nested import leaves, rebuild_mapping, rebuild_sequence

Place = Callable[[Any], Any]


def _is_on(batch: Any, device: torch.device) -> bool:
    return all(
        leaf.device.type == device.type
        if isinstance(leaf, torch.Tensor)
        else not callable(getattr(leaf, "to", None))
        for _, leaf in leaves(batch)
    )


def mover(device: torch.device, *, non_blocking: bool = False) -> Place:
    """Return a function that moves a batch to ``device``.

    Containers keep their classes; an object with its own ``to`` method moves itself; the rest stays as it is.
    """

    def place(data: Any) -> Any:
        if isinstance(data, torch.Tensor):
            return data.to(device, non_blocking=non_blocking)
        own = getattr(data, "to", None)
        if callable(own):
            # Not every class with a ``to`` knows of non-blocking copies.
            try:
                return own(device, non_blocking=non_blocking)
            except TypeError:
                return own(device)
        if isinstance(data, (list, tuple)):
            return rebuild_sequence(data, map(place, data))
        if isinstance(data, Mapping):
            return rebuild_mapping(data, {key: place(value) for key, value in data.items()})
        return data

    return place


def placement(first: Any, device: torch.device | None, *, non_blocking: bool = False) -> Place | None:
    """Return what moves the batches that look like ``first`` to ``device``; None when nothing has to move."""
    if device is None or (device.type == "cpu" and _is_on(first, device)):
        return None
    return mover(device, non_blocking=non_blocking)


__all__ = ["Place", "mover", "placement"]
