"""The last window of a loop is closed by the end of that loop, whatever is read beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from accel import Accelerator
from accel_state import process

STEPS = 2


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    process.reset()


class Training:
    """Two prepared loaders and a step that notes whether it closed a window."""

    def __init__(self, first: int, second: int, steps: int = STEPS) -> None:
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=steps)
        torch.manual_seed(1)
        model = nn.Linear(3, 1).double()
        self.model, self.optimizer, self.first, self.second = self.accelerator.prepare(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            DataLoader(rows(first), batch_size=1),  # type: ignore[arg-type]
            DataLoader(rows(second), batch_size=1),  # type: ignore[arg-type]
        )
        self.closed: list[bool] = []

    def step(self, *inputs: torch.Tensor) -> None:
        with self.accelerator.accumulate(self.model):
            self.accelerator.backward(loss_of(self.model, *inputs))
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.closed.append(self.accelerator.sync_gradients)


def rows(count: int) -> torch.Tensor:
    return torch.arange(3.0 * count, dtype=torch.float64).view(count, 3) / (3 * count)


def loss_of(model: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    return torch.stack([model(each).square().mean() for each in inputs]).sum()


def flags(count: int) -> list[bool]:
    """Return which of ``count`` micro-batches close a window: every second, and the last."""
    return [number % STEPS == 0 or number == count for number in range(1, count + 1)]


@pytest.mark.parametrize(("first", "second"), [(5, 5), (5, 8), (8, 5)])
def test_zipped_loops_end_with_the_shorter_one(first: int, second: int) -> None:
    training = Training(first, second)
    for pair in zip(training.first, training.second, strict=False):
        training.step(*pair)
    assert training.closed == flags(5)


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


class Reader:
    """Keeps an iterator of its own, as a prefetcher does."""

    def __init__(self, loader: Any) -> None:
        self.inner = iter(loader)

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> Any:
        return next(self.inner)


@pytest.mark.parametrize("kind", [iter, endless, Reader, itertools.cycle])
@pytest.mark.parametrize("began", ["before", "inside"])
def test_a_loader_that_is_advanced_by_next_does_not_end_the_loop(
    began: str, kind: Callable[[Any], Iterator[Any]]
) -> None:
    training = Training(7, 9 if kind in {iter, Reader} else 3)
    other = kind(training.second)
    if began == "before":
        next(other)
    for inputs in training.first:
        training.step(inputs, next(other))
    assert training.closed == flags(7)


def test_a_loader_that_is_begun_again_in_the_body() -> None:
    training = Training(7, 3)
    other = iter(training.second)
    for inputs in training.first:
        try:
            more = next(other)
        except StopIteration:
            other = iter(training.second)
            more = next(other)
        training.step(inputs, more)
    assert training.closed == flags(7)


def test_a_batch_that_was_only_looked_at() -> None:
    training = Training(5, 3)
    look = iter(training.second)
    for number, inputs in enumerate(training.first):
        if number == 1:
            next(look)
        training.step(inputs)
    assert training.closed == flags(5)


def peek(loader: Any, kept: list[Any]) -> Any:
    kept.append(iter(loader))
    return next(kept[0])


def test_an_iterator_that_a_function_kept() -> None:
    training = Training(5, 3)
    kept: list[Any] = []
    for number, inputs in enumerate(training.first):
        if number == 1:
            peek(training.second, kept)
        training.step(inputs)
    assert training.closed == flags(5)


@pytest.mark.parametrize("wrap", [lambda loader: loader, Reader, enumerate])
def test_a_loop_in_a_loop_ends_with_itself(wrap: Callable[[Any], Any]) -> None:
    training = Training(2, 3)
    for _ in training.first:
        for inputs in wrap(training.second):
            training.step(inputs[1] if isinstance(inputs, tuple) else inputs)
    assert training.closed == flags(3) * 2


def test_a_training_loop_that_is_a_generator() -> None:
    training = Training(5, 3)

    def steps() -> Iterator[int]:
        other = itertools.cycle(training.second)
        for number, inputs in enumerate(training.first):
            training.step(inputs, next(other))
            yield number

    assert list(steps()) == [0, 1, 2, 3, 4]
    assert training.closed == flags(5)


def test_the_gradients_of_a_short_window_are_a_mean_beside_another_loader() -> None:
    """The length that is known ahead is that of the loop, not that of the loader read beside it."""
    training = Training(3, 9, steps=4)
    model = nn.Linear(3, 1).double()
    model.load_state_dict(training.model.state_dict())
    other = iter(training.second)
    pairs = []
    for inputs in training.first:
        pairs.append((inputs, next(other)))
        with training.accelerator.accumulate(training.model):
            training.accelerator.backward(loss_of(training.model, *pairs[-1]))
    assert training.accelerator.sync_gradients
    (sum(loss_of(model, *pair) for pair in pairs) / 3).backward()  # type: ignore[union-attr]
    # float64, sums in another order.
    torch.testing.assert_close(
        [p.grad for p in training.model.parameters()],
        [p.grad for p in model.parameters()],
        rtol=1e-12,
        atol=0,
    )
