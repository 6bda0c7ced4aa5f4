"""How the tensors of a block lie in one piece of memory, so that they are allocated and moved together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_ALIGNED = 256
"""Bytes; kernels load several values at once, from addresses that are multiples of their size."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor: where its bytes begin and end, and what they mean."""

    begin: int
    end: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    def holds(self, value: torch.Tensor) -> bool:
        """Tell whether ``value`` is such a tensor."""
        return (value.dtype, value.shape, value.stride()) == (self.dtype, self.shape, self.stride)

    def view(self, memory: torch.Tensor) -> torch.Tensor:
        """Return the tensor that lies in ``memory``, which are bytes."""
        flat = memory[self.begin : self.end].view(self.dtype)
        # With a count of changes of its own: views share theirs.
        return flat.as_strided(self.shape, self.stride).data


@dataclass(frozen=True, slots=True)
class Layout:
    """Several tensors one behind the other, ``size`` bytes in all."""

    pieces: tuple[Piece, ...]
    size: int

    def holds(self, values: Sequence[torch.Tensor]) -> bool:
        """Tell whether ``values`` are such tensors."""
        return all(piece.holds(value) for piece, value in zip(self.pieces, values, strict=True))


def lay_out(values: Sequence[torch.Tensor]) -> Layout:
    """Return a layout for ``values``, which are `packable`."""
    pieces, place = [], 0
    for value in values:
        end = place + value.numel() * value.itemsize
        pieces.append(Piece(place, end, value.dtype, value.shape, value.stride()))
        place = -(-end // _ALIGNED) * _ALIGNED
    return Layout(tuple(pieces), pieces[-1].end if pieces else 0)


def packable(value: torch.Tensor) -> bool:
    """Tell whether ``value`` is nothing but its bytes, each of them used once."""
    if type(value) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return False
    if value.layout != torch.strided or value.is_quantized or value.is_conj() or value.is_neg():
        return False
    if value.is_contiguous():
        return True
    dense = 1
    for stride, count in sorted(zip(value.stride(), value.shape, strict=True)):
        if count != 1:
            if stride != dense:
                return False
            dense *= count
    return True


def as_bytes(value: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a `packable` tensor as they lie in memory."""
    value = value.detach()
    return value.as_strided((value.numel(),), (1,), value.storage_offset()).view(torch.uint8)


__all__ = ["Layout", "Piece", "as_bytes", "lay_out", "packable"]
