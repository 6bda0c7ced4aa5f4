"""Collectives over ``torch.distributed``: one group of ranks, errors that say who, what and where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
import torch.distributed as dist

from accel_core.errors import CollectiveError
from accel_core.protocols import LonelyCollectives

from .calls import Call
from .dtypes import result_dtype, wire_dtype
from .frames import user_line
from .lastwords import last_words
from .rollcall import RollCall

if TYPE_CHECKING:
    from accel_core.protocols import Collectives, ReduceOp

_OPS = {"sum": "SUM", "mean": "SUM", "max": "MAX", "min": "MIN"}
"""Names of torch's reductions: a PyTorch without torch.distributed has no such objects, and needs none."""

# Renamed in torch 2.13, where the old name warns.
_gather_into: Any = vars(dist).get("all_gather_single") or vars(dist).get("all_gather_into_tensor")


class TorchCollectives:
    """The ranks of a ``torch.distributed`` process group (the default one when ``group`` is None).

    ``device`` is where a tensor goes that the group's backends do not take as it is; CPU tensors
    stay on the CPU whenever a backend takes them. Gathers and broadcasts move bytes, so every
    dtype travels and arrives bit-equal. Results carry no gradient.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, device: torch.device | None = None) -> None:
        whole: Any = dist.group.WORLD
        made: dist.ProcessGroup = group if group is not None else whole
        self._group: dist.ProcessGroup | None = made
        self._types = backend_names(made)
        self._device = device or torch.device("cpu")
        self._side: dist.ProcessGroup | None = None
        self._papers: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Tensors of votes that were counted, for those to come."""
        self._whole = dist.get_world_size(made) == dist.get_world_size()
        self._compares = self._whole and self._types.get("cpu") == "gloo"
        self._roll = RollCall(self, self._open_channel)
        self._beside: TorchCollectives | None = None
        self._parts: list[ref[TorchCollectives]] = []
        self._leaving: list[Callable[[], None]] = []
        self.rank = dist.get_rank(made)
        self.world_size = dist.get_world_size(made)
        self.timeout = group_timeout(made)
        """The effective timeout of one operation, read back from the group."""

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The torch process group that it runs on, for what must be given one; None once it was destroyed."""
        return self._group

    def __repr__(self) -> str:
        return f"<TorchCollectives rank {self.rank} of {self.world_size}, {self._types}>"

    # -- tensors ---------------------------------------------------------------------------------

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensors of all ranks stacked in rank order: ``[world_size, *tensor.shape]``."""
        value = self._ship(tensor)
        out = torch.empty((self.world_size, *value.shape), dtype=value.dtype, device=value.device)
        if value.numel():
            call = partial(_gather_into, _bytes(out), _bytes(value), group=self._alive())
            self._run("all_gather", call, tensor)
        return out.to(tensor.device)

    def all_reduce(self, tensor: torch.Tensor, op: ReduceOp = "sum") -> torch.Tensor:
        """Return a new tensor: the sum, mean, maximum or minimum over the ranks.

        A sum of booleans is an int64 count, a mean of integers a float. Raises CollectiveError for
        an unknown ``op``, and for the maximum or minimum of complex numbers, which have no order.
        """
        if op not in _OPS:
            raise CollectiveError(
                f"Unknown reduction {op!r}", where=user_line(), fix="use sum, mean, max or min"
            )
        if tensor.is_complex() and op in {"max", "min"}:
            raise CollectiveError(
                f"Complex numbers have no {op}", where=user_line(), fix="reduce tensor.abs()"
            )
        value = self._ship(tensor)
        through_gloo = self._types.get(value.device.type) == "gloo"
        target = result_dtype(value.dtype, op)
        value = value.to(wire_dtype(target, through_gloo=through_gloo), copy=True)
        flat = torch.view_as_real(value) if value.is_complex() else value
        if flat.numel():
            operator = getattr(dist.ReduceOp, _OPS[op])
            call = partial(dist.all_reduce, flat, operator, group=self._alive())
            self._run(f"all_reduce({op})", call, tensor)
        if op == "mean":
            value /= self.world_size
        return value.to(device=tensor.device, dtype=target)

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
        """Return rank ``src``'s tensor; the others pass one of the same shape and dtype."""
        source = self._global(src)
        value = self._ship(tensor)
        if self.rank != src:
            value = torch.empty_like(value)
        if value.numel():
            self._run(
                "broadcast", partial(dist.broadcast, _bytes(value), source, group=self._alive()), tensor
            )
        return value.to(tensor.device)

    # -- objects ---------------------------------------------------------------------------------

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return the picklable values of all ranks in rank order."""
        found: list[Any] = [None] * self.world_size
        self._run(
            "all_gather_object", partial(dist.all_gather_object, found, value, group=self._alive()), value
        )
        return found

    def broadcast_object(self, value: Any, src: int = 0) -> Any:
        """Return rank ``src``'s picklable value."""
        source = self._global(src)
        box = [value if self.rank == src else None]
        self._run(
            "broadcast_object", partial(dist.broadcast_object_list, box, source, group=self._alive()), value
        )
        return box[0]

    @property
    def comparisons(self) -> int:
        """How many exchanges were begun on the channel for comparisons; small values travel there too."""
        return self._roll.count

    # -- agreement -------------------------------------------------------------------------------

    def exchange(
        self, call: Call, value: Callable[[], bytes] | None
    ) -> tuple[Collectives, list[memoryview] | None]:
        """Compare ``call`` over the ranks; return the group to run it on, and small values of all ranks.

        These are what ``value()`` gives on each rank, or None when one of them is not small.

        Without ``value`` nothing is compared: what is exchanged does not go through gloo, where unequal
        sizes end the process and a rank waits for the others anyway; nor is it in a part of the world.
        Raises DistributedOperationException on every rank when the calls differ.
        """
        if value is None or not self._compares:
            return self, None
        return self, self._roll.exchange(call, value())

    def meet(self, call: Call) -> None:
        """Return once every rank has come with the same ``call``."""
        if self._compares:
            self._roll.exchange(call, b"")
        else:
            self.barrier()

    def carries(self, tensor: torch.Tensor) -> bool:
        """Tell whether ``tensor`` goes through gloo as it is."""
        return self._types.get(tensor.device.type) == "gloo"

    # -- order -----------------------------------------------------------------------------------

    def barrier(self) -> None:
        """Return once every rank has called it."""
        # A reduction of one number instead of dist.barrier: with a CPU backend in the group the host
        # waits for the other hosts only, and no accelerator is guessed for the wait.
        where = "cpu" if "cpu" in self._types else self._device
        token = torch.zeros(1, device=where)
        self._run("barrier", partial(dist.all_reduce, token, group=self._alive()), None)

    def vote(self, ballot: int) -> Callable[[], list[int]]:
        """Start to exchange one integer per rank; the returned function waits and gives all, in rank order.

        The first vote opens a gloo channel of its own, so that votes and the reductions of a
        backward pass cannot be taken for each other.
        """
        if self._side is None:
            self._side = self._run("vote", self._open_channel, ballot)
        side = self._side
        papers = self._papers.pop() if self._papers else self._new_papers()
        out, mine = papers
        mine.fill_(ballot)
        work = self._run("vote", partial(_gather_into, out, mine, group=side, async_op=True), ballot)
        found: list[int] = []

        def result() -> list[int]:
            if not found:
                self._run("vote", work.wait, ballot)
                found.extend(out.tolist())
                self._papers.append(papers)
            return list(found)

        return result

    def _new_papers(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.empty(self.world_size, dtype=torch.int64), torch.empty(1, dtype=torch.int64)

    def group(self, ranks: Sequence[int]) -> Collectives:
        """Return the group of these ranks; every rank of this group calls it with the same list.

        On a rank that is not a member the result has rank -1 and refuses every operation.
        """
        members = list(ranks)
        if (
            not members
            or len(set(members)) != len(members)
            or not set(members) <= set(range(self.world_size))
        ):
            raise CollectiveError(
                f"A group needs different ranks from 0 to {self.world_size - 1}, not {members}",
                where=user_line(),
            )
        if len(members) == 1 and self.rank == members[0]:
            return LonelyCollectives()
        if len(members) == 1:
            return _outside(members)
        world = [self._global(rank) for rank in members]
        # Inside a part of the world only that part calls this, so it cannot wait for all of the world.
        local = not self._whole
        create = partial(dist.new_group, world, timeout=self.timeout, use_local_synchronization=local)
        made = self._run("group", create, members)
        if self.rank not in members:
            return _outside(members)
        part = TorchCollectives(made, self._device)
        self._parts.append(ref(part))
        return part

    def beside(self, leaving: Callable[[], None]) -> Collectives:
        """Return a gloo group of the same ranks for another thread. Collective.

        It is made by the first call; nothing that is exchanged in it can meet what is exchanged here.
        ``leaving`` is called before the group is left, to wait until the thread is through.
        """
        if self._beside is None:
            self._beside = TorchCollectives(self._run("group of a thread", self._open_channel, None))
        self._leaving.append(leaving)
        return self._beside

    # -- inside ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of a group that is about to be destroyed; every operation is refused from now on."""
        while self._leaving:
            self._leaving.pop()()
        # Connections end when nobody holds them any more, and with them the wait of other ranks.
        for part in (self._beside, *(made() for made in self._parts)):
            if part is not None:
                part.close()
        self._parts.clear()
        self._group = self._side = self._beside = None
        self._roll.close()

    def reopen(self) -> None:
        """Take up the new default group, made of the same ranks, after the old one was left and closed."""
        self._group = dist.group.WORLD

    def open_channels(self) -> None:
        """Make the channels that the first vote and the first comparison would make. Collective.

        A rank that makes one waits in a store, where nothing that another rank does can reach it.
        """
        if self._side is None:
            self._side = self._run("vote", self._open_channel, None)
        self._roll.open()

    def _alive(self) -> dist.ProcessGroup:
        if self._group is None:
            raise CollectiveError(
                "The process group was destroyed",
                where=f"rank {self.rank} of {self.world_size}, {user_line()}",
                fix="destroy it after the last exchange between ranks",
            )
        return self._group

    def _open_channel(self) -> dist.ProcessGroup:
        """Make a gloo group of the same ranks, for messages that must not meet those of the group itself."""
        ranks = [self._global(rank) for rank in range(self.world_size)]
        # torch names a group that only its members know of by how many groups a rank is in, which may
        # differ between ranks: the whole world is not made that way.
        made: Any = dist.new_group(
            ranks, timeout=self.timeout, backend="gloo", use_local_synchronization=not self._whole
        )
        channel: dist.ProcessGroup = made
        return channel

    def _global(self, rank: int) -> int:
        if not 0 <= rank < self.world_size:
            raise CollectiveError(
                f"There is no rank {rank} in a group of {self.world_size}",
                where=f"rank {self.rank}, {user_line()}",
                fix=f"pass a rank from 0 to {self.world_size - 1}",
            )
        return dist.get_global_rank(self._alive(), rank)

    def _ship(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor detached, contiguous, and on a device that a backend of the group takes."""
        value = tensor.detach()
        if value.device.type not in self._types:
            value = value.to("cpu" if "cpu" in self._types else self._device)
        return value.contiguous()

    @staticmethod
    def gather_bytes(out: torch.Tensor, own: torch.Tensor, group: Any) -> None:
        """Fill ``out`` with the bytes of all ranks of ``group``."""
        _gather_into(out, own, group=group)

    def run(self, call: Call, action: Callable[[], Any]) -> Any:
        """Return ``action()``, which exchanges for ``call``; what torch raises becomes a CollectiveError."""
        return self._run(call.operation, action, None)

    def _run(self, name: str, call: Callable[[], Any], subject: Any) -> Any:
        try:
            return call()
        except CollectiveError:
            raise
        except (RuntimeError, ValueError) as error:
            raise self._explain(name, error, subject) from error

    def explain(self, name: str, error: Exception) -> CollectiveError | None:
        """Return what ``error`` in torch's own communication ``name`` means, with where the ranks stopped.

        None when it is about neither a rank that is late nor one that is lost.
        """
        return self._explain(name, error, None) if any(_signs(error)) else None

    def _explain(self, name: str, error: Exception, subject: Any) -> CollectiveError:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        late, lost = _signs(error)
        if late:
            what = f"{name} did not finish within {self.timeout}: a rank did not call it, or is late"
            fix = (
                "make every rank reach this line, or raise the timeout (InitProcessGroupKwargs(timeout=...))"
            )
        elif lost:
            what = f"{name} lost a rank: another process of the group has ended"
            fix = "look for the first error in the output of the other ranks"
        else:
            what, fix = (
                f"{name} failed",
                "call it on all ranks with equal shapes and dtypes (ACCELERATE_DEBUG_MODE=1)",
            )
        brought = (
            f", brought {tuple(subject.shape)} {subject.dtype}" if isinstance(subject, torch.Tensor) else ""
        )
        line = user_line()
        where = f"rank {self.rank} of {self.world_size}{brought}, timeout {self.timeout}, {line}"
        what = f"{what} ({first.strip()})"
        if (late or lost) and self._group is not None:
            members = dist.get_process_group_ranks(self._group)
            what += last_words(members, self.rank, f"{name} at {line}")
        return CollectiveError(what, where=where, fix=fix)


def _signs(error: Exception) -> tuple[bool, bool]:
    """Return whether ``error`` speaks of a rank that is late, and of one that is lost."""
    text = str(error).lower()
    late = "timed out" in text or "timeout" in text
    return late, any(sign in text for sign in ("connection", "peer", "socket", "broken pipe"))


class NoCollectives:
    """Stands where a process cannot take part: every operation is refused with the reason."""

    def __init__(self, rank: int, world_size: int, reason: str, fix: str) -> None:
        self.rank = rank
        self.world_size = world_size
        self.reason = reason
        self.fix = fix

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise CollectiveError(self.reason, where=user_line(), fix=self.fix)

    all_gather = _refuse
    all_reduce = _refuse
    broadcast = _refuse
    all_gather_object = _refuse
    broadcast_object = _refuse
    barrier = _refuse
    vote = _refuse
    group = _refuse


def _outside(members: Sequence[int]) -> NoCollectives:
    reason = f"This rank is not in the group of ranks {list(members)}"
    return NoCollectives(
        -1, len(members), reason, "call the operation on members only (`if group.rank >= 0`)"
    )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def backend_names(group: dist.ProcessGroup) -> dict[str, str]:
    """Return which backend of ``group`` takes tensors of which device type."""
    pairs = (pair.split(":") for pair in dist.get_backend_config(group).split(","))
    return {device: backend.lower() for device, backend in pairs}


def group_timeout(group: dist.ProcessGroup) -> timedelta | None:
    """Return the timeout that ``group`` applies to one operation, read back from it; None if unknown."""
    # torch has no public way to ask: where one of these names is gone, the timeout is unknown.
    known = hasattr(group, "_get_backend") and hasattr(group, "_device_types")
    for device in group._device_types if known else ():
        options = getattr(group._get_backend(device), "options", None)
        value = getattr(options, "_timeout", None)
        if isinstance(value, timedelta):
            return value
    return None


__all__ = ["NoCollectives", "TorchCollectives", "backend_names", "group_timeout"]
