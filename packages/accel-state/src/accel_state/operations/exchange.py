"""Gather, reduce, broadcast and pad nested containers of tensors over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

import torch

from accel_core.errors import UnknownNameError
from accel_core.nested import leaves, map_nested
from accel_state.calls import Call
from accel_state.dtypes import result_dtype, wire_dtype
from accel_state.rollcall import packed, stacked

from .agreement import Comparing, agree, of_process
from .walking import only_tensors

if TYPE_CHECKING:
    from accel_core.protocols import Collectives, ReduceOp

_REDUCTIONS = ("sum", "mean", "max", "min", "none")


def wait_for_everyone(*, collectives: Collectives | None = None) -> None:
    """Wait until every process has come here.

    Raises DistributedOperationException when another process is in another exchange instead.
    """
    group = of_process(collectives)
    if isinstance(group, Comparing):
        group.meet(Call.of("wait_for_everyone"))
    else:
        group.barrier()


def gather(tensor: Any, *, collectives: Collectives | None = None) -> Any:
    """Return the tensors of all ranks joined along the first dimension, in rank order, on every rank.

    A tensor of shape ``[n, ...]`` becomes ``[world_size * n, ...]``; one without dimensions becomes
    ``[world_size]``, with one process too. Results lie on the device of the input. Raises
    NotATensorError for other leaves and DistributedOperationException when shapes differ between ranks
    (on accelerators in debug mode only).
    """
    group = of_process(collectives)
    found = _Tensors(tensor, "gather")
    if group.world_size == 1:
        return found.map(lambda leaf: leaf if leaf.ndim else leaf[None])
    group, stacks = _together(Call.of("gather", tensor, one_line=True), found.tensors, group)
    if stacks is None:
        return found.map(lambda leaf: _joined(group.all_gather(leaf)))
    return found.rebuilt(map(_joined, stacks))


class _Tensors:
    """The tensors of a nested structure in an order that does not depend on that of a mapping's keys.

    Ranks may have filled their mappings in different orders; what they exchange goes by name.
    """

    def __init__(self, data: Any, operation: str) -> None:
        self._data = data
        found = only_tensors(data, operation)
        paths = [path for path, _ in leaves(data)]
        self._order = sorted(range(len(paths)), key=paths.__getitem__)
        self.tensors = [found[place] for place in self._order]

    def map(self, function: Callable[[torch.Tensor], Any]) -> Any:
        """Return the structure with ``function`` applied to every tensor, in this order."""
        return self.rebuilt(map(function, self.tensors))

    def rebuilt(self, values: Iterable[Any]) -> Any:
        """Return the structure with ``values``, in this order, in place of the tensors."""
        placed = dict(zip(self._order, values, strict=True))
        each = iter(range(len(placed)))
        return map_nested(lambda _: placed[next(each)], self._data)


def _together(
    call: Call, tensors: list[torch.Tensor], group: Collectives
) -> tuple[Collectives, list[torch.Tensor] | None]:
    """Compare ``call``; return the group to run it on and, when they are small, the tensors of all ranks."""
    carries: Callable[[torch.Tensor], bool] = getattr(group, "carries", _nothing)
    through_gloo = all(map(carries, tensors))
    group, values = agree(call, group, (lambda: packed(tensors)) if through_gloo else None)
    return group, None if values is None else stacked(values, tensors)


def _nothing(tensor: torch.Tensor) -> bool:  # noqa: ARG001
    return False


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
    found = _Tensors(tensor, "reduce")
    if reduction == "none" or group.world_size == 1:
        return found.map(lambda leaf: _scaled(_lonely(leaf, reduction, group), scale))
    op = cast("ReduceOp", reduction)
    group, stacks = _together(Call.of(f"reduce({op})", tensor, one_line=True), found.tensors, group)
    if stacks is None or any(leaf.is_complex() for leaf in stacks):
        return found.map(lambda leaf: _scaled(group.all_reduce(leaf, op), scale))
    return found.rebuilt(_scaled(_over_ranks(stack, op), scale) for stack in stacks)


def _lonely(tensor: torch.Tensor, reduction: str, group: Collectives) -> torch.Tensor:
    if reduction == "none":
        return tensor
    op = cast("ReduceOp", reduction)
    # A group of one may hand its input back; the dtype must not depend on the number of ranks.
    return group.all_reduce(tensor, op).to(result_dtype(tensor.dtype, op))


def _over_ranks(stack: torch.Tensor, op: ReduceOp) -> torch.Tensor:
    """Return ``[world_size, *shape]`` reduced over the first dimension, as `Collectives.all_reduce` does."""
    target = result_dtype(stack.dtype, op)
    value = stack.to(wire_dtype(target, through_gloo=True))
    if op in {"max", "min"}:
        return (value.amax(0) if op == "max" else value.amin(0)).to(target)
    # In the dtype of the wire, as between processes: torch would widen whole numbers.
    total = value.sum(0, dtype=value.dtype)
    return (total / stack.shape[0] if op == "mean" else total).to(target)


def _scaled(tensor: torch.Tensor, scale: float) -> torch.Tensor:
    return tensor if scale == 1.0 else tensor * scale


def broadcast(tensor: Any, from_process: int = 0, *, collectives: Collectives | None = None) -> Any:
    """Return rank ``from_process``'s tensors on every rank; all ranks pass equal structures and shapes."""
    group = of_process(collectives)
    found = _Tensors(tensor, "broadcast")
    if group.world_size == 1:
        return found.map(lambda leaf: group.broadcast(leaf, from_process))
    call = Call.of(f"broadcast from rank {from_process}", tensor)
    group, stacks = _together(call, found.tensors, group)
    if stacks is None or not 0 <= from_process < group.world_size:
        return found.map(lambda leaf: group.broadcast(leaf, from_process))
    return found.rebuilt(stack[from_process].clone() for stack in stacks)


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
    found = _Tensors(tensor, "pad_across_processes")
    if group.world_size == 1:
        return tensor
    own = torch.tensor([_size(leaf, dim) for leaf in found.tensors], dtype=torch.int64)
    call = Call.of(f"pad_across_processes(dim={dim})", tensor, sizes=False, one_line=True)
    group, values = agree(call, group, lambda: packed([own]))
    sizes = group.all_reduce(own, "max") if values is None else stacked(values, [own])[0].amax(0)
    largest = iter(sizes.tolist())
    return found.map(lambda leaf: pad_to(leaf, next(largest), dim, pad_index, pad_first))


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
