"""Collectives of debug mode: before each exchange all ranks compare what they are about to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .board import Board
from .calls import Call
from .collectives import TorchCollectives

if TYPE_CHECKING:
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from accel_core.errors import CollectiveError
    from accel_core.protocols import Collectives, ReduceOp

_EXCHANGES = "exchanges"
_VOTES = "votes"


class CheckedCollectives:
    """Do what ``inner`` does, after every rank has announced the same operation, shapes and dtypes.

    Every method raises DistributedOperationException on all ranks alike when they differ, with the
    user's line on each rank, and when a rank does not come in time.
    """

    def __init__(self, inner: TorchCollectives, board: Board) -> None:
        self.inner = inner
        self.board = board
        self.rank = inner.rank
        self.world_size = inner.world_size
        self.timeout: timedelta | None = inner.timeout

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The torch process group underneath."""
        return self.inner.process_group

    def __repr__(self) -> str:
        return f"<checked {self.inner!r}>"

    def exchange(
        self,
        call: Call,
        value: Callable[[], bytes] | None,
    ) -> tuple[Collectives, None]:
        """Compare ``call`` over the ranks; return the group to run it on, which does not compare again."""
        self._settle(call)
        return self.inner, None

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Do as `TorchCollectives.all_gather`."""
        self._settle(Call.of("all_gather", tensor))
        return self.inner.all_gather(tensor)

    def all_reduce(self, tensor: torch.Tensor, op: ReduceOp = "sum") -> torch.Tensor:
        """Do as `TorchCollectives.all_reduce`."""
        self._settle(Call.of(f"all_reduce({op})", tensor))
        return self.inner.all_reduce(tensor, op)

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
        """Do as `TorchCollectives.broadcast`."""
        self._settle(Call.of(f"broadcast from rank {src}", tensor))
        return self.inner.broadcast(tensor, src)

    def all_gather_object(self, value: Any) -> list[Any]:
        """Do as `TorchCollectives.all_gather_object`."""
        self._settle(Call.of("all_gather_object"))
        return self.inner.all_gather_object(value)

    def broadcast_object(self, value: Any, src: int = 0) -> Any:
        """Do as `TorchCollectives.broadcast_object`."""
        self._settle(Call.of(f"broadcast_object from rank {src}"))
        return self.inner.broadcast_object(value, src)

    def barrier(self) -> None:
        """Do as `TorchCollectives.barrier`. It is there to wait: only the group's own timeout ends it."""
        self._settle(Call.of("barrier"), patient=True)
        self.inner.barrier()

    def meet(self, call: Call) -> None:
        """Do as ``barrier``, under the name of ``call``."""
        self._settle(call, patient=True)
        self.inner.barrier()

    def vote(self, ballot: int) -> Callable[[], list[int]]:
        """Do as `TorchCollectives.vote`; what the ranks ask is compared when the answer is wanted."""
        call = Call.of("vote")
        # Only written down: asking must not wait, and other exchanges may come in between.
        number = self.board.announce(_VOTES, call)
        # But the first one opens a channel, for which all ranks must come.
        settled = number == 0
        if settled:
            self.board.settle(_VOTES, number, call, self._limit(patient=False))
        answers = self.inner.vote(ballot)

        def result() -> list[int]:
            nonlocal settled
            if not settled:
                self.board.settle(_VOTES, number, call, self._limit(patient=False))
                settled = True
            return answers()

        return result

    def group(self, ranks: Sequence[int]) -> Collectives:
        """Do as `TorchCollectives.group`; the group that it returns compares too."""
        members = list(ranks)
        self._settle(Call.of(f"group of ranks {members}"))
        made = self.inner.group(members)
        board = self.board.part(members)
        return CheckedCollectives(made, board) if isinstance(made, TorchCollectives) else made

    def beside(self, leaving: Callable[[], None]) -> Collectives:
        """Do as `TorchCollectives.beside`. What is exchanged there has no order here, and is not compared."""
        self._settle(Call.of("group of a thread"))
        return self.inner.beside(leaving)

    def explain(self, name: str, error: Exception) -> CollectiveError | None:
        """Do as `TorchCollectives.explain`."""
        return self.inner.explain(name, error)

    def close(self) -> None:
        """Let go of a group that was destroyed."""
        self.inner.close()

    def _settle(self, call: Call, *, patient: bool = False) -> None:
        number = self.board.announce(_EXCHANGES, call)
        self.board.settle(_EXCHANGES, number, call, self._limit(patient=patient))

    def _limit(self, *, patient: bool) -> float:
        longest = self.timeout.total_seconds() if self.timeout is not None else float("inf")
        return longest if patient else min(longest, self.board.patience)


__all__ = ["CheckedCollectives"]
