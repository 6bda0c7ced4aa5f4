"""Gather, reduce, broadcast and pad nested containers of tensors over the ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from accel_core.errors import UnknownNameError
from accel_core.nested import map_nested
from accel_state.dtypes import result_dtype

from .agreement import agree, of_process
from .walking import only_tensors

if TYPE_CHECKING:
    from accel_core.protocols import Collectives, ReduceOp

_REDUCTIONS = ("sum", "mean", "max", "min", "none")


def wait_for_everyone(*, collectives: Collectives | None = None) -> None:
    """Wait until every process has come here."""
    of_process(collectives).barrier()


def gather(tensor: Any, *, collectives: Collectives | None = None) -> Any:
    """Return the tensors of all ranks joined along the first dimension, in rank order, on every rank.

    A tensor of shape ``[n, ...]`` becomes ``[world_size * n, ...]``; one without dimensions becomes
    ``[world_size]``, with one process too. Results lie on the device of the input. Raises
    NotATensorError for other leaves and, in debug mode, DistributedOperationException when shapes
    differ between ranks.
    """
    group = of_process(collectives)
    only_tensors(tensor, "gather")
    agree("gather", tensor, group)
    if group.world_size == 1:
        return map_nested(lambda leaf: leaf if leaf.ndim else leaf[None], tensor)
    return map_nested(lambda leaf: _joined(group.all_gather(leaf)), tensor)


def _joined(stacked: torch.Tensor) -> torch.Tensor:
    return stacked.flatten(0, 1) if stacked.ndim > 1 else stacked


def reduce(
    tensor: Any, reduction: str = "mean", scale: float = 1.0, *, collectives: Collectives | None = None
) -> Any:
    """Return every tensor reduced over the ranks and multiplied by ``scale``, on every rank.

    ``reduction``: ``mean``, ``sum``, ``max``, ``min``, or ``none`` for scaling only. The input is not
    changed. A mean of whole numbers is a float, a sum of booleans a count.
    """
    if reduction not in _REDUCTIONS:
        raise UnknownNameError("reduction", str(reduction), _REDUCTIONS)
    group = of_process(collectives)
    only_tensors(tensor, "reduce")
    agree("reduce", tensor, group)
    return map_nested(lambda leaf: _reduced(leaf, reduction, scale, group), tensor)


def _reduced(tensor: torch.Tensor, reduction: str, scale: float, group: Collectives) -> torch.Tensor:
    if reduction == "none":
        value = tensor
    else:
        op = cast("ReduceOp", reduction)
        value = group.all_reduce(tensor, op)
        # A group of one hands its input back; the dtype must not depend on the number of ranks.
        value = value.to(result_dtype(tensor.dtype, op))
    return value if scale == 1.0 else value * scale


def broadcast(tensor: Any, from_process: int = 0, *, collectives: Collectives | None = None) -> Any:
    """Return rank ``from_process``'s tensors on every rank; all ranks pass equal structures and shapes."""
    group = of_process(collectives)
    only_tensors(tensor, "broadcast")
    agree("broadcast", tensor, group)
    return map_nested(lambda leaf: group.broadcast(leaf, from_process), tensor)


def pad_across_processes(
    tensor: Any,
    dim: int = 0,
    pad_index: float = 0,
    pad_first: bool = False,
    *,
    collectives: Collectives | None = None,
) -> Any:
    """Return every tensor padded along ``dim`` to the largest size that any rank has there.

    New places hold ``pad_index`` and come after the old ones, or before them with ``pad_first``.
    Tensors without such a dimension are passed through. The sizes of all tensors are exchanged at
    once; a rank that needs no padding gets its own tensors back.
    """
    group = of_process(collectives)
    found = only_tensors(tensor, "pad_across_processes")
    agree("pad_across_processes", tensor, group, dim=dim)
    if group.world_size == 1 or not found:
        return tensor
    own = torch.tensor([_size(leaf, dim) for leaf in found], dtype=torch.int64)
    largest = iter(group.all_reduce(own, "max").tolist())
    return map_nested(lambda leaf: pad_to(leaf, next(largest), dim, pad_index, pad_first), tensor)


def _size(tensor: torch.Tensor, dim: int) -> int:
    return tensor.shape[dim] if -tensor.ndim <= dim < tensor.ndim else -1


def pad_to(tensor: torch.Tensor, size: int, dim: int, pad_index: float, pad_first: bool) -> torch.Tensor:
    """Return ``tensor`` with ``size`` places along ``dim``; or itself where that needs nothing."""
    if _size(tensor, dim) in {-1, size}:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = size - shape[dim]
    padding = tensor.new_full(shape, pad_index)
    return torch.cat([padding, tensor] if pad_first else [tensor, padding], dim=dim)


__all__ = ["broadcast", "gather", "pad_across_processes", "pad_to", "reduce", "wait_for_everyone"]
