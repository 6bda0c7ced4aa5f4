"""The learning rate as a function of samples or tokens: the same on 1, 2 and 4 processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, IterableDataset

from accel import Accelerator
from accel.utils import GradScalerKwargs
from accel_core.errors import StateError

GLOBAL_BATCH = 8


class Stream(IterableDataset[Any]):
    """Samples without a length."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return iter(torch.arange(self.count, dtype=torch.float32)[:, None])


def schedule(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=16),
        lr_scheduler.CosineAnnealingLR(optimizer, 90),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, [16])


def course(
    unit: Any,
    *,
    samples: int = 52,
    steps: int = 1,
    kind: str = "map",
    accumulate: bool = True,
    epochs: int = 2,
    evaluate: bool = False,
    **options: Any,
) -> list[float]:
    """Train, and return the learning rate after each update."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=steps, **options)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    data: Any = Stream(samples) if kind == "stream" else torch.arange(float(samples))[:, None]
    size = GLOBAL_BATCH if accelerator.split_batches else GLOBAL_BATCH // accelerator.num_processes
    model, optimizer, rate, loader, test = accelerator.prepare(
        model, optimizer, schedule(optimizer), DataLoader(data, size), DataLoader(data, 4), schedule_in=unit
    )
    rates = []
    for _ in range(epochs):
        for number, x in enumerate(loader, start=1):
            if accumulate:
                with accelerator.accumulate(model):
                    accelerator.backward(0 * model(x).sum(), weight=len(x) if unit == "tokens" else None)
                    if evaluate:
                        for _ in test:
                            pass
                    optimizer.step()
                    rate.step()
                    optimizer.zero_grad()
            else:
                # Accumulated by hand.
                (0 * model(x).mean()).backward()
                if number % steps and number != len(loader):
                    continue
                optimizer.step()
                rate.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                rates.append(rate.get_last_lr()[0])
    return rates


def expected(positions: list[int]) -> list[float]:
    """Step the schedule in plain PyTorch, one by one; return the rates at these positions."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler, rates = schedule(optimizer), []
    optimizer.step()
    for position in range(1, max(positions) + 1):
        scheduler.step()
        if position in positions:
            rates.append(scheduler.get_last_lr()[0])
    return rates


def positions(samples: int = 52, steps: int = 1, epochs: int = 2) -> list[int]:
    """Return the samples read after each update; an epoch ends its window and repeats no sample."""
    found = []
    for epoch in range(epochs):
        ends = [*range(GLOBAL_BATCH, samples, GLOBAL_BATCH), samples]
        closing = [end for number, end in enumerate(ends, start=1) if number % steps == 0 or end == samples]
        found += [epoch * samples + end for end in closing]
    return found


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 3},
        {"kind": "stream"},
        {"steps": 2, "evaluate": True},
        {"steps": 2, "split_batches": True},
    ],
    ids=str,
)
def test_samples(world: int, options: dict[str, Any], pool: Any) -> None:
    def run(options: dict[str, Any]) -> list[float]:
        return course("samples", **options)

    # 52 is no multiple of 8: what fills up the last batch is no sample.
    wanted = expected(positions(steps=options.get("steps", 1)))
    for rates in pool.run(world, run, options):
        assert rates == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_samples_without_accumulate(pool: Any) -> None:
    def run() -> list[float]:
        return course("samples", steps=3, accumulate=False)

    assert pool.run(1, run)[0] == pytest.approx(expected(positions(steps=3)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("steps", [1, 3])
def test_tokens(world: int, steps: int, pool: Any) -> None:
    def run(steps: int) -> list[float]:
        return course("tokens", samples=48, steps=steps)

    wanted = expected(positions(48, steps))
    for rates in pool.run(world, run, steps):
        assert rates == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_updates(world: int, pool: Any) -> None:
    def run() -> list[float]:
        return course("updates", steps=2)

    wanted = expected(list(range(1, len(positions(steps=2)) + 1)))
    assert pool.run(world, run) == [pytest.approx(wanted, rel=1e-12)] * world


@pytest.mark.parametrize("world", [1, 2])
def test_the_documented_default_moves_once_per_process(world: int, pool: Any) -> None:
    def run() -> list[float]:
        return course(None, steps=2)

    wanted = expected([world * number for number in range(1, len(positions(steps=2)) + 1)])
    assert pool.run(world, run) == [pytest.approx(wanted, rel=1e-12)] * world


@pytest.mark.parametrize("world", [1, 2])
def test_an_overflow_does_not_move_it(world: int, pool: Any) -> None:
    def run() -> tuple[list[int], list[bool]]:
        handlers = [GradScalerKwargs(init_scale=2.0)]
        accelerator = Accelerator(cpu=True, mixed_precision="fp16", kwargs_handlers=handlers)
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        rate = lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
        data: Any = torch.ones(12 * accelerator.num_processes, 1)
        model, optimizer, rate, loader = accelerator.prepare(
            model, optimizer, rate, DataLoader(data, 4), schedule_in="samples"
        )
        moved, skipped = [], []
        for number, x in enumerate(loader):
            accelerator.backward(model(x).mean() * (torch.inf if number == 1 else 1.0))
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            moved.append(rate.last_epoch)
            skipped.append(optimizer.step_was_skipped)
        return moved, skipped

    batch = 4 * world
    assert pool.run(world, run) == [([batch, batch, 2 * batch], [False, True, False])] * world


def test_what_nobody_counted_stops_the_loop(pool: Any) -> None:
    def run(unit: str, prepared: bool) -> None:
        accelerator = Accelerator(cpu=True)
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        loader: Any = DataLoader(torch.ones(4, 1), 2)  # type: ignore[arg-type]
        model, optimizer, rate = accelerator.prepare(model, optimizer, schedule(optimizer), schedule_in=unit)
        for x in accelerator.prepare(loader) if prepared else loader:
            accelerator.backward(model(x).mean())
            optimizer.step()
            rate.step()

    for unit, prepared, said in (("samples", False, "nobody knows how many"), ("tokens", True, "no weight")):
        (error,) = pool.failures(1, run, unit, prepared)
        assert isinstance(error, StateError)
        assert said in str(error)
    assert pool.run(1, run, "samples", True) == [None]


def test_single_steps_are_told_of(pool: Any) -> None:
    def told() -> list[str]:
        records: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = records.append  # type: ignore[method-assign]
        logging.getLogger("accel").addHandler(handler)
        accelerator = Accelerator(cpu=True)
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        model, optimizer, _ = accelerator.prepare(
            model, optimizer, lr_scheduler.MultiplicativeLR(optimizer, lambda _: 0.9), schedule_in="samples"
        )
        logging.getLogger("accel").removeHandler(handler)
        return [record.getMessage() for record in records]

    ((said,),) = pool.run(1, told)
    assert "MultiplicativeLR counts samples and can only be stepped one by one" in said
