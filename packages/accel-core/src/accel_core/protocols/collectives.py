"""What accel asks of a group of ranks that talk to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

ReduceOp = Literal["sum", "mean", "max", "min"]


@runtime_checkable
class Collectives(Protocol):
    """One group of ranks. Every method except ``group`` is collective: all ranks of the group must call it.

    Tensors may live on the group's device or on the CPU; a result lives where its input did.
    """

    rank: int
    """This process's place in the group, from 0."""
    world_size: int

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensors of all ranks stacked in rank order: shape ``[world_size, *tensor.shape]``.

        Shapes and dtypes must be equal on all ranks.
        """
        ...

    def all_reduce(self, tensor: torch.Tensor, op: ReduceOp = "sum") -> torch.Tensor:
        """Return a new tensor: the sum, mean, maximum or minimum over the ranks.

        Sums of booleans are int64 counts and means of integers are floats, whatever the world size.
        """
        ...

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
        """Return rank ``src``'s tensor; the others pass one of the same shape and dtype."""
        ...

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return the picklable values of all ranks in rank order."""
        ...

    def broadcast_object(self, value: Any, src: int = 0) -> Any:
        """Return rank ``src``'s picklable value."""
        ...

    def barrier(self) -> None:
        """Return once every rank has called it."""

    def vote(self, ballot: int) -> Callable[[], list[int]]:
        """Start to exchange one small integer per rank; the returned function waits and gives all by rank.

        It runs beside the computation on a CPU channel of its own, so asking ahead costs next to nothing.
        """
        ...

    def group(self, ranks: Sequence[int]) -> Collectives:
        """Return the group of these ranks (numbers in this group).

        Every rank of this group must call it with the same list, whether it is a member or not.
        """
        ...


class LonelyCollectives:
    """The group of one: every operation returns its input. Needs no torch and no process group."""

    rank = 0
    world_size = 1

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor with a leading dimension of 1."""
        return tensor.unsqueeze(0)

    def all_reduce(self, tensor: torch.Tensor, op: ReduceOp = "sum") -> torch.Tensor:
        """Return a copy, in the dtype that a reduction over several ranks has."""
        if op == "sum" and str(tensor.dtype) == "torch.bool":
            return tensor.long()
        if op == "mean" and not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor / 1
        return tensor.clone()

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
        """Return the tensor."""
        return tensor

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return the value in a list."""
        return [value]

    def broadcast_object(self, value: Any, src: int = 0) -> Any:
        """Return the value."""
        return value

    def barrier(self) -> None:
        """Return at once."""

    def vote(self, ballot: int) -> Callable[[], list[int]]:
        """Return the own ballot in a list, when asked."""
        return lambda: [ballot]

    def group(self, ranks: Sequence[int]) -> Collectives:
        """Return this group."""
        return self
