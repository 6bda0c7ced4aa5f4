"""The part of a tensor that this process keeps: all of it, or its shard of a DTensor."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..offload.block import like
from ..weights.mapped import Location


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements from ``start`` on, as many as ``shape`` says, of a whole tensor of shape ``whole``."""

    whole: tuple[int, ...]
    shape: tuple[int, ...]
    start: tuple[int, ...]

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this part of a whole tensor, as a view."""
        for dimension, (begin, length) in enumerate(zip(self.start, self.shape, strict=True)):
            if length != tensor.shape[dimension]:
                tensor = tensor.narrow(dimension, begin, length)
        return tensor

    def within(self, place: Location) -> Location | None:
        """Return where this part of a stored tensor lies; None if it is not in one stretch."""
        if self.shape == self.whole:
            return place
        if 0 in self.shape or self.shape[1:] != self.whole[1:]:
            return None
        row = (place.end - place.begin) // self.whole[0]
        begin = place.begin + self.start[0] * row
        return replace(place, begin=begin, end=begin + self.shape[0] * row, shape=self.shape)


def piece_of(tensor: torch.Tensor, *, whole: bool = True) -> Piece:
    """Return which part of ``tensor`` is here; unless ``whole``, values for it come cut."""
    if not is_shard(tensor):
        return Piece(tuple(tensor.shape), tuple(tensor.shape), (0,) * tensor.dim())
    shard: Any = tensor
    if not whole:
        here = tuple(shard.to_local().shape)
        return Piece(here, here, (0,) * len(here))
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, start = compute_local_shape_and_global_offset(shard.shape, shard.device_mesh, shard.placements)
    # A rank that has nothing of it starts behind the end.
    start = tuple(min(begin, size) for begin, size in zip(start, shard.shape, strict=True))
    return Piece(tuple(shard.shape), tuple(shape), start)


def is_shard(tensor: torch.Tensor) -> bool:
    """Tell whether this process holds a part only; asks nobody whose module nobody has imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the memory that this process has of ``tensor``, detached."""
    shard: Any = tensor.detach()
    found: torch.Tensor = shard.to_local() if is_shard(tensor) else shard
    return found


def rebuilt(old: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """Return ``data``, which is here, as ``old`` is: its class, its attributes, the same part of a whole."""
    if not is_shard(old):
        return like(old, data)
    from torch.distributed.tensor import DTensor

    shard: Any = old
    made: torch.Tensor = DTensor.from_local(
        data,
        shard.device_mesh,
        shard.placements,
        run_check=False,
        shape=shard.shape,
        stride=shard.stride(),
    )
    if isinstance(old, nn.Parameter):
        made = nn.Parameter(made, requires_grad=old.requires_grad)
        made.__dict__.update(old.__dict__)
    return made


__all__ = ["Piece", "is_shard", "local", "piece_of", "rebuilt"]
