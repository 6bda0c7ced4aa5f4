"""The documented training function around an Accelerator, and the batch that is kept by accumulating."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from accel import Accelerator
from accel.utils import InitProcessGroupKwargs, find_executable_batch_size
from accel.utils.memory import release_memory, should_reduce_batch_size
from accel_core.errors import CapabilityError, StateError
from accel_state import process

FULL = "CUDA out of memory"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    process.reset()


def parts() -> tuple[nn.Module, torch.optim.Optimizer, TensorDataset]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    data = TensorDataset(torch.randn(96, 4, dtype=torch.float64), torch.randn(96, 1, dtype=torch.float64))
    return model, torch.optim.SGD(model.parameters(), lr=0.1), data


def trained(accelerator: Accelerator, batch_size: int, full: Callable[[int], bool]) -> list[torch.Tensor]:
    """Return the gradients of every update, then the parameters."""
    model, optimizer, data = parts()
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=batch_size))
    kept = []
    for number, (x, y) in enumerate(loader):
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(x), y)
            if full(number):
                raise torch.OutOfMemoryError(FULL)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                kept += [parameter.grad.clone() for parameter in model.parameters()]
            optimizer.step()
            optimizer.zero_grad()
    return [*kept, *(parameter.detach() for parameter in model.parameters())]


def plainly(batch_size: int) -> list[torch.Tensor]:
    model, optimizer, data = parts()
    kept = []
    for x, y in DataLoader(data, batch_size=batch_size):
        nn.functional.mse_loss(model(x), y).backward()
        kept += [parameter.grad.clone() for parameter in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
    return [*kept, *(parameter.detach() for parameter in model.parameters())]


@pytest.mark.world(1, 2, 4)
@pytest.mark.parametrize("base", [1, 2])
def test_a_smaller_batch_with_more_accumulation_has_the_same_gradients(
    pool: Any, world: int, base: int
) -> None:
    """12 does not fit, 6 neither, 4 does: the largest divisor that fits, not the next half."""

    def run() -> tuple[list[int], int, list[torch.Tensor]]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=base)
        tried = []

        @find_executable_batch_size(starting_batch_size=12, keep_global_batch=accelerator)
        def train(batch_size: int) -> list[torch.Tensor]:
            tried.append(batch_size)
            # On the last rank, in the second micro-batch: the window is open, the others are in backward.
            return trained(
                accelerator, batch_size, lambda n: accelerator.is_last_process and batch_size > 4 and n == 1
            )

        found = train()
        return tried, accelerator.gradient_accumulation_steps, found

    want = plainly(12 * base * world)
    for tried, steps, found in pool.run(world, run):
        assert tried == [12, 6, 4]
        assert steps == 3 * base
        assert len(found) == len(want)
        for ours, theirs in zip(found, want, strict=True):
            # Sums of the same float64 numbers in another order.
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.world(1, 2)
def test_the_documented_training_function(pool: Any, world: int) -> None:
    def run() -> tuple[list[int], int]:
        # Long, so that a rank that is not called back is noticed as a test that takes too long.
        accelerator = Accelerator(
            cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=50))]
        )
        tried = []

        @find_executable_batch_size(starting_batch_size=32)
        def inner_training_loop(batch_size: int) -> int:
            nonlocal accelerator
            accelerator.free_memory()
            tried.append(batch_size)
            trained(accelerator, batch_size, lambda n: accelerator.is_last_process and batch_size > 8)
            return batch_size

        return tried, inner_training_loop()

    assert pool.run(world, run) == [([32, 16, 8], 8)] * world


@pytest.mark.world(1, 2)
def test_free_memory_may_be_forgotten(pool: Any, world: int) -> None:
    """What the failed attempt prepared is forgotten with it, and not what was there before."""

    def run() -> tuple[int, int]:
        accelerator = Accelerator(cpu=True)

        @find_executable_batch_size(starting_batch_size=4)
        def train(batch_size: int) -> int:
            accelerator.prepare(nn.Linear(2, 2))
            if batch_size > 1:
                raise torch.OutOfMemoryError(FULL)
            return batch_size

        return train(), len(accelerator._registry.models)

    assert pool.run(world, run) == [(1, 1)] * world


def test_what_was_prepared_before_stays_on_one_process() -> None:
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(nn.Linear(2, 2))

    @find_executable_batch_size(starting_batch_size=4)
    def evaluate(batch_size: int) -> int:
        model(torch.ones(batch_size, 2))
        if batch_size > 1:
            raise torch.OutOfMemoryError(FULL)
        return batch_size

    assert evaluate() == 1
    assert accelerator._registry.models == [model]


@pytest.mark.world(2)
def test_what_was_prepared_before_stays_and_ranks_that_stand_together_retry(pool: Any) -> None:
    def run() -> tuple[int, list[float]]:
        accelerator = Accelerator(cpu=True)
        model = accelerator.prepare(nn.Linear(2, 2))

        @find_executable_batch_size(starting_batch_size=4)
        def evaluate(batch_size: int) -> int:
            out = model(torch.ones(batch_size, 2))
            if batch_size > 1:
                raise torch.OutOfMemoryError(FULL)
            return len(accelerator.gather(out))

        found = evaluate()
        accelerator.backward(model(torch.ones(1, 2)).sum())
        return found, model.module.weight.grad.flatten().tolist()

    assert pool.run(2, run) == [(2, [1.0] * 4)] * 2


def test_accumulation_starts_from_the_own_number_each_time_and_returns_to_it_on_errors() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    steps = []

    @find_executable_batch_size(starting_batch_size=8, keep_global_batch=accelerator)
    def train(batch_size: int, limit: int) -> int:
        steps.append(accelerator.gradient_accumulation_steps)
        if batch_size > limit:
            raise torch.OutOfMemoryError(FULL)
        return batch_size

    assert (train(4), accelerator.gradient_accumulation_steps) == (4, 4)
    assert (train(1), accelerator.gradient_accumulation_steps) == (1, 16)
    assert steps == [2, 4, 2, 4, 8, 16]
    with pytest.raises(CapabilityError, match="reached zero"):
        train(0)
    assert accelerator.gradient_accumulation_steps == 2
    accelerator.gradient_accumulation_steps = 3
    assert (train(4), accelerator.gradient_accumulation_steps) == (4, 6)


def test_a_loop_that_does_not_accumulate_is_told() -> None:
    accelerator = Accelerator(cpu=True)

    @find_executable_batch_size(starting_batch_size=4, keep_global_batch=accelerator)
    def train(batch_size: int) -> None:
        model = accelerator.prepare(nn.Linear(2, 1))
        if batch_size > 2:
            raise torch.OutOfMemoryError(FULL)
        accelerator.backward(model(torch.ones(batch_size, 2)).sum())

    with pytest.raises(StateError, match=r"outside of accelerator.accumulate\(model\).* 2 times too small"):
        train()


def test_a_trial_finds_the_divisor_and_leaves_nothing_behind() -> None:
    accelerator = Accelerator(cpu=True)
    trials = []

    def one_step(batch_size: int) -> None:
        trials.append((batch_size, accelerator.gradient_accumulation_steps))
        accelerator.prepare(nn.Linear(2, 1))
        if batch_size > 7:
            raise torch.OutOfMemoryError(FULL)

    @find_executable_batch_size(starting_batch_size=48, keep_global_batch=accelerator, trial=one_step)
    def train(batch_size: int) -> int:
        assert accelerator._registry.models == []
        return batch_size

    assert train() == 6
    assert accelerator.gradient_accumulation_steps == 8
    assert len(trials) <= 5
    assert all(size * steps == 48 for size, steps in trials)


def test_free_memory_and_release_memory_agree() -> None:
    accelerator = Accelerator(cpu=True)
    assert (
        accelerator.free_memory(1, "2") == accelerator.clear(1, "2") == release_memory(1, "2") == [None, None]
    )
    assert should_reduce_batch_size(MemoryError())


def test_an_accelerator_that_nobody_names_is_gone() -> None:
    """Keeping watch over what was prepared keeps nothing alive, not even a model that refers to its owner."""
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(nn.Linear(2, 2))
    model.owner = [accelerator]
    gone = weakref.ref(accelerator)
    del accelerator, model
    gc.collect()
    assert gone() is None
