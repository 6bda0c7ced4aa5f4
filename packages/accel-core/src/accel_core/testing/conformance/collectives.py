"""What every implementation of `Collectives` must do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

import pytest
import torch

from accel_core.protocols import Collectives, ReduceOp

from .base import Conformance
from .checks import equal, same

if TYPE_CHECKING:
    from accel_core.testing.pool import WorkerPool

Factory = Callable[[], Collectives]

SHAPES = ((), (3,), (2, 3), (0,), (2, 0))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
NUMBERS = (torch.float32, torch.float64, torch.int64)
REDUCED: dict[ReduceOp, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum": lambda stack: stack.sum(0),
    "mean": lambda stack: stack.mean(0),
    "max": lambda stack: stack.amax(0),
    "min": lambda stack: stack.amin(0),
}
"""The expectations; sums of small whole numbers are exact, so results are compared bit by bit."""


class CollectivesConformance(Conformance):
    """Override ``factory``: called in a worker of the pool, it starts what it needs and returns Collectives.

    ``devices`` are the places where tensors are tried, ``worlds`` the numbers of processes.
    """

    worlds: ClassVar[tuple[int, ...]] = (1, 2, 4)
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    @pytest.fixture
    def factory(self) -> Factory:
        """Return a function without arguments that cloudpickle can send."""
        raise NotImplementedError

    def test_it_is_a_collectives(self, pool: WorkerPool, world: int, factory: Factory) -> None:
        """Place and size are right."""
        pool.run(world, check_place, factory)

    def test_all_gather(self, pool: WorkerPool, world: int, factory: Factory) -> None:
        """Tensors of all ranks are stacked in rank order, whatever dtype and shape."""
        pool.run(world, check_all_gather, factory, self.devices)

    @pytest.mark.parametrize("op", ["sum", "mean", "max", "min"])
    def test_all_reduce(
        self, pool: WorkerPool, world: int, factory: Factory, op: Literal["sum", "mean", "max", "min"]
    ) -> None:
        """The result is exact, new, and leaves the input alone."""
        pool.run(world, check_all_reduce, factory, self.devices, op)

    def test_broadcast(self, pool: WorkerPool, world: int, factory: Factory) -> None:
        """Every rank can be the source."""
        pool.run(world, check_broadcast, factory, self.devices)

    def test_objects(self, pool: WorkerPool, world: int, factory: Factory) -> None:
        """Objects of different sizes travel, and come back in rank order."""
        pool.run(world, check_objects, factory)

    def test_barrier(self, pool: WorkerPool, world: int, factory: Factory) -> None:
        """Nobody leaves before the last has come."""
        times = pool.run(world, check_barrier, factory)
        # One clock for all processes of a machine.
        assert min(left for _, left in times) >= max(came for came, _ in times)

    def test_votes(self, pool: WorkerPool, world: int, factory: Factory) -> None:
        """Votes arrive in rank order while other operations run, also two at a time and read out of order."""
        pool.run(world, check_votes, factory)

    def test_groups(self, pool: WorkerPool, world: int, factory: Factory) -> None:
        """A group counts its own ranks, keeps to itself, and groups can be made again and again."""
        pool.run(world, check_groups, factory)

    def test_non_contiguous_and_differentiable_inputs(
        self, pool: WorkerPool, world: int, factory: Factory
    ) -> None:
        """Views and parameters are accepted."""
        pool.run(world, check_views, factory)


def _value(rank: int, dtype: torch.dtype, shape: tuple[int, ...], device: str) -> torch.Tensor:
    """Return small whole numbers that differ between ranks and elements."""
    numel = torch.Size(shape).numel()
    numbers = torch.arange(numel).reshape(shape) % 5 + 3 * rank + 1
    return (numbers % 2 == 0 if dtype is torch.bool else numbers).to(device=device, dtype=dtype)


def check_place(factory: Factory) -> None:
    """Compare with the environment."""
    group = factory()
    equal(isinstance(group, Collectives), True, f"{group!r} has every method of Collectives")
    equal((group.rank, group.world_size), (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])), "place")


def check_all_gather(factory: Factory, devices: tuple[str, ...]) -> None:
    """Try every dtype and shape."""
    group = factory()
    for device in devices:
        for dtype in DTYPES:
            for shape in SHAPES:
                result = group.all_gather(_value(group.rank, dtype, shape, device))
                expected = torch.stack([_value(r, dtype, shape, device) for r in range(group.world_size)])
                same(result, expected, f"all_gather of {dtype} {shape} on {device}")


def check_all_reduce(factory: Factory, devices: tuple[str, ...], op: ReduceOp) -> None:
    """Try numbers of every shape."""
    group = factory()
    for device in devices:
        for dtype in NUMBERS:
            if op == "mean" and not dtype.is_floating_point:
                continue
            for shape in SHAPES:
                mine = _value(group.rank, dtype, shape, device)
                before = mine.clone()
                result = group.all_reduce(mine, op)
                stack = torch.stack([_value(r, dtype, shape, device) for r in range(group.world_size)])
                what = f"all_reduce({op}) of {dtype} {shape} on {device}"
                same(result, REDUCED[op](stack).to(dtype), what)
                result.add_(1)
                same(mine, before, f"{what}: its input")


def check_broadcast(factory: Factory, devices: tuple[str, ...]) -> None:
    """Try every source."""
    group = factory()
    for src in range(group.world_size):
        for device in devices:
            for dtype in DTYPES:
                for shape in SHAPES:
                    result = group.broadcast(_value(group.rank, dtype, shape, device), src)
                    expected = _value(src, dtype, shape, device)
                    same(result, expected, f"broadcast of {dtype} {shape} from {src} on {device}")


def check_objects(factory: Factory) -> None:
    """Send objects of different sizes."""
    group = factory()
    values = [{"rank": rank, "text": "x" * 1000 * rank, "none": None} for rank in range(group.world_size)]
    equal(group.all_gather_object(values[group.rank]), values, "all_gather_object")
    for src in range(group.world_size):
        equal(group.broadcast_object(values[group.rank], src), values[src], f"broadcast_object from {src}")
    equal(group.broadcast_object(None if group.rank else (1, 2)), (1, 2), "broadcast_object of rank 0 alone")


def check_barrier(factory: Factory) -> tuple[float, float]:
    """Come late on the last rank; return when this rank came and left."""
    group = factory()
    group.barrier()
    if group.rank == group.world_size - 1:
        time.sleep(0.2)
    came = time.monotonic()
    group.barrier()
    return came, time.monotonic()


def check_votes(factory: Factory) -> None:
    """Leave two votes open across other operations."""
    group = factory()
    everyone = range(group.world_size)
    first, second = group.vote(10 + group.rank), group.vote(-group.rank)
    total = group.all_reduce(torch.tensor([1.0]))
    equal(total.item(), float(group.world_size), "all_reduce between votes")
    equal(second(), [-rank for rank in everyone], "second vote")
    equal(first(), [10 + rank for rank in everyone], "first vote")
    equal(group.vote(2**40)(), [2**40] * group.world_size, "vote of a large number")


def check_groups(factory: Factory) -> None:
    """Use groups of all, of every other, and of single ranks."""
    world = factory()
    for ranks in ([*range(world.world_size)], [*range(0, world.world_size, 2)], [world.world_size - 1]):
        for _ in range(2):
            part = world.group(ranks)
            if world.rank not in ranks:
                continue
            equal(
                (part.rank, part.world_size), (ranks.index(world.rank), len(ranks)), f"place in group {ranks}"
            )
            equal(part.all_gather_object(world.rank), ranks, f"all_gather_object in group {ranks}")
            same(
                part.all_gather(torch.tensor(world.rank)), torch.tensor(ranks), f"all_gather in group {ranks}"
            )
            last = len(ranks) - 1
            equal(part.broadcast_object(world.rank, last), ranks[-1], f"broadcast_object in group {ranks}")
            result = part.broadcast(torch.tensor(world.rank), last)
            same(result, torch.tensor(ranks[-1]), f"broadcast in group {ranks}")
            equal(part.vote(world.rank)(), ranks, f"vote in group {ranks}")
            part.barrier()
    world.barrier()


def check_views(factory: Factory) -> None:
    """Pass a transposed view and a tensor that requires gradients."""
    group = factory()
    value = torch.arange(6.0).reshape(2, 3).t() + group.rank
    stack = torch.stack([value - group.rank + rank for rank in range(group.world_size)])
    same(group.all_gather(value), stack, "all_gather of a view")
    same(group.all_reduce(value), stack.sum(0), "all_reduce of a view")
    same(group.broadcast(value), stack[0], "broadcast of a view")
    same(
        group.all_gather(value.clone().requires_grad_()).detach(),
        stack,
        "all_gather of a leaf with gradients",
    )
    same(group.all_reduce(value.clone().requires_grad_()).detach(), stack.sum(0), "all_reduce of such a leaf")


__all__ = ["CollectivesConformance"]
