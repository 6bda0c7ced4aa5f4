"""Moving batches to a device, decided once per iteration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from accel_core.moving import move
from accel_core.nested import leaves

Place = Callable[[Any], Any]


def _is_on(batch: Any, device: torch.device) -> bool:
    return all(
        leaf.device.type == device.type
        if isinstance(leaf, torch.Tensor)
        else not callable(getattr(leaf, "to", None))
        for _, leaf in leaves(batch)
    )


def mover(device: torch.device, *, non_blocking: bool = False) -> Place:
    """Return a function that moves a batch to ``device``, as `accel_core.moving.move` does."""
    return partial(move, device=device, non_blocking=non_blocking)


def placement(first: Any, device: torch.device | None, *, non_blocking: bool = False) -> Place | None:
    """Return what moves the batches that look like ``first`` to ``device``; None when nothing has to move."""
    if device is None or (device.type == "cpu" and _is_on(first, device)):
        return None
    return mover(device, non_blocking=non_blocking)


__all__ = ["Place", "mover", "placement"]
