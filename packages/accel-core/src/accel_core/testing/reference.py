"""Plain implementations of the protocols: what suites are built on, and what suites must accept.

They are the shortest correct ones over torch on a CPU, for tests of packages that must not import
each other. They are no part of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from accel_core.protocols import (
    Collectives,
    Device,
    DeviceMemory,
    DeviceRNG,
    LonelyCollectives,
    MemoryInfo,
    PrecisionPlan,
    ReduceOp,
    Scaler,
    StrategyContext,
    Support,
)

_OPS = {
    "sum": dist.ReduceOp.SUM,
    "mean": dist.ReduceOp.SUM,
    "max": dist.ReduceOp.MAX,
    "min": dist.ReduceOp.MIN,
}


class CpuRNG:
    """The CPU's generator."""

    def seed(self, seed: int) -> None:
        """Seed it."""
        torch.manual_seed(seed)

    def get_state(self) -> torch.Tensor:
        """Return its state."""
        return torch.get_rng_state()

    def set_state(self, state: torch.Tensor) -> None:
        """Restore its state."""
        torch.set_rng_state(state)


class CpuMemory:
    """A fixed answer: one GiB, half of it free."""

    def info(self, index: int = 0) -> MemoryInfo:
        """Return the fixed answer."""
        return MemoryInfo(free=2**29, total=2**30)

    def empty_cache(self) -> None:
        """Do nothing."""

    def reset_peak(self, index: int = 0) -> None:
        """Do nothing."""


class CpuDevice:
    """The CPU."""

    name = "cpu"
    distributed_label = "MULTI_CPU"

    def __init__(self) -> None:
        self.rng: DeviceRNG = CpuRNG()
        self.memory: DeviceMemory = CpuMemory()

    def available(self) -> Support:
        """Say yes."""
        return Support(ok=True)

    def count(self) -> int:
        """Return 1."""
        return 1

    def select(self, local_rank: int) -> torch.device:
        """Return the CPU."""
        return torch.device("cpu")

    def backends(self) -> tuple[str, ...]:
        """Return gloo."""
        return ("gloo",)

    def supports(self, capability: str) -> Support:
        """Say yes to what every CPU does."""
        if capability in {"fp16", "bf16", "float64", "scaler"}:
            return Support(ok=True)
        return Support(ok=False, reason=f"a CPU has no {capability!r}")

    def synchronize(self) -> None:
        """Return: a CPU queues nothing."""


class GlooCollectives:
    """Collectives over torch's default gloo group, or a subgroup of it."""

    def __init__(self, group: Any = None) -> None:
        self.pg: Any = group
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)

    def _global(self, rank: int) -> int:
        return rank if self.pg is None else dist.get_global_rank(self.pg, rank)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the stacked tensors."""
        parts = [torch.empty_like(tensor.contiguous()) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.pg)
        return torch.stack(parts)

    def all_reduce(self, tensor: torch.Tensor, op: ReduceOp = "sum") -> torch.Tensor:
        """Return the reduced tensor."""
        result = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result, _OPS[op], group=self.pg)
        return result / self.world_size if op == "mean" else result

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
        """Return rank ``src``'s tensor."""
        result = tensor.clone(memory_format=torch.contiguous_format)
        dist.broadcast(result, self._global(src), group=self.pg)
        return result

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return all values."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.pg)
        return values

    def broadcast_object(self, value: Any, src: int = 0) -> Any:
        """Return rank ``src``'s value."""
        values = [value]
        dist.broadcast_object_list(values, self._global(src), group=self.pg)
        return values[0]

    def barrier(self) -> None:
        """Wait for all."""
        dist.barrier(group=self.pg)

    def vote(self, ballot: int) -> Callable[[], list[int]]:
        """Start a gather of one number."""
        parts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        work = dist.all_gather(parts, torch.tensor([ballot]), group=self.pg, async_op=True)

        def result() -> list[int]:
            if work is not None:
                work.wait()
            return [int(part) for part in parts]

        return result

    def group(self, ranks: Sequence[int]) -> Collectives:
        """Return a subgroup; for a rank outside it, the group of one."""
        group = dist.new_group([self._global(rank) for rank in ranks], backend="gloo")
        return GlooCollectives(group) if self.rank in ranks else LonelyCollectives()


def gloo() -> Collectives:
    """Return collectives over all ranks; initialises torch's group from the environment."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return GlooCollectives()


class FullPrecision:
    """The policy that changes nothing."""

    name = "no"

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device

    def plan(self) -> PrecisionPlan:
        """Return an empty plan."""
        return PrecisionPlan()

    def check(self, device: Device) -> None:
        """Accept every device."""

    def convert(self, model: nn.Module) -> nn.Module:
        """Return the model."""
        return model

    def restore(self, model: nn.Module) -> nn.Module:
        """Return the model."""
        return model

    def autocast(
        self,
        *,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> AbstractContextManager[None]:
        """Return an empty context."""
        return nullcontext()

    def scaler(self, **settings: Any) -> Scaler | None:
        """Return None."""
        return None


def cpu_context(**settings: Any) -> StrategyContext:
    """Return what a strategy is built from: CPU, gloo over all ranks, full precision."""
    return StrategyContext(
        device=torch.device("cpu"),
        hardware=CpuDevice(),
        collectives=gloo(),
        precision=FullPrecision(),
        settings=settings,
    )


__all__ = ["CpuDevice", "CpuMemory", "CpuRNG", "FullPrecision", "GlooCollectives", "cpu_context", "gloo"]
