"""Two Accelerators in one process: each does its own; what they must share is an error when it differs."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from accel import Accelerator
from accel.utils import DataLoaderConfiguration, GradScalerKwargs
from accel_core.errors import AlreadyShardedError, PrepareError, StateError
from accel_state import AcceleratorState, GradientState

BATCHES = 7


class Loop:
    """A training loop that can be stopped after every micro-batch; it evaluates in the middle of windows."""

    def __init__(self, steps: int, seed: int, unit: Any = None, precision: str = "no") -> None:
        handlers = [GradScalerKwargs(init_scale=8.0, growth_interval=1)] if precision == "fp16" else []
        self.accelerator = Accelerator(
            cpu=True,
            mixed_precision=precision,
            gradient_accumulation_steps=steps,
            dataloader_config=DataLoaderConfiguration(data_seed=seed),
            kwargs_handlers=handlers,
        )
        torch.manual_seed(seed)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
        size = 2 * self.accelerator.num_processes
        data: Any = torch.randn(BATCHES * size, 3)
        self.model, self.optimizer, self.loader, self.test = self.accelerator.prepare(
            model, optimizer, DataLoader(data, 2, shuffle=True), DataLoader(data[: 2 * size], 2)
        )
        self.rate = self.accelerator.prepare(rate, schedule_in=unit)
        self.seen: list[Any] = []

    def run(self) -> Iterator[None]:
        accelerator = self.accelerator
        for x in self.loader:
            with accelerator.accumulate(self.model):
                accelerator.backward(self.model(x).square().mean())
                closes = accelerator.sync_gradients
                yield
                if closes != accelerator.sync_gradients:
                    raise AssertionError("another loop has moved this window")
                rows = [accelerator.gather_for_metrics(part) for part in self.test]
                self.optimizer.step()
                self.rate.step()
                self.optimizer.zero_grad()
            state = [p.detach().clone() for p in self.model.parameters()]
            self.seen.append((closes, len(torch.cat(rows)), self.rate.get_last_lr(), x, state))
            yield

    def alone(self) -> list[Any]:
        for _ in self.run():
            pass
        return self.seen


def flat(seen: list[Any]) -> list[Any]:
    return [[bool(c), n, lr, x.tolist(), [p.tolist() for p in state]] for c, n, lr, x, state in seen]


KINDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"steps": 2, "seed": 1}, {"steps": 3, "seed": 2}),
    ({"steps": 1, "seed": 1, "unit": "samples"}, {"steps": 4, "seed": 2, "unit": "updates"}),
    ({"steps": 2, "seed": 1, "precision": "fp16"}, {"steps": 3, "seed": 2, "precision": "fp16"}),
]


@pytest.mark.parametrize("kinds", KINDS, ids=["windows", "schedules", "scales"])
@pytest.mark.parametrize("world", [1, 2])
def test_interleaved_loops_are_as_separate_runs(world: int, kinds: Any, pool: Any) -> None:
    def together(kinds: Any) -> list[Any]:
        loops = [Loop(**kind) for kind in kinds]
        running = [loop.run() for loop in loops]
        while running:
            running = [each for each in running if next(each, "over") != "over"]
        return [flat(loop.seen) for loop in loops]

    def apart(kind: Any) -> Any:
        return flat(Loop(**kind).alone())

    wanted = [pool.run(world, apart, kind) for kind in kinds]
    for rank, found in enumerate(pool.run(world, together, kinds)):
        assert all(len(each) == BATCHES for each in found)
        assert found == [each[rank] for each in wanted]


def test_each_has_its_own_settings(pool: Any) -> None:
    def settings() -> list[Any]:
        first = Accelerator(cpu=True, gradient_accumulation_steps=2, step_scheduler_with_optimizer=False)
        second = Accelerator(cpu=True, gradient_accumulation_steps=3, split_batches=True)
        second.gradient_accumulation_steps = 5
        # Documented: without arguments it shows the one made last.
        return [
            first.gradient_accumulation_steps,
            second.gradient_accumulation_steps,
            first.split_batches,
            first.step_scheduler_with_optimizer,
            GradientState().num_steps,
            first.gradient_state == second.gradient_state,
            first.state == second.state,
        ]

    assert pool.run(1, settings) == [[2, 5, False, False, 5, False, True]]


def test_freeing_one_leaves_the_other(pool: Any) -> None:
    def survives() -> bool:
        first, second = Loop(2, 1), Loop(3, 2)
        running = second.run()
        next(running)
        first.accelerator.free_memory()
        for _ in running:
            pass
        return len(second.seen) == BATCHES

    assert pool.run(1, survives) == [True]


@pytest.mark.world(2)
def test_each_says_once_how_its_schedule_moves(pool: Any) -> None:
    def told() -> int:
        records: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = records.append  # type: ignore[method-assign]
        logging.getLogger("accel").addHandler(handler)
        try:
            for unit in (None, None, "updates"):
                loop = Loop(1, 1, unit)
                again = torch.optim.lr_scheduler.StepLR(loop.optimizer.optimizer, 1)
                loop.accelerator.prepare(again)
        finally:
            logging.getLogger("accel").removeHandler(handler)
        return sum("steps per optimizer step" in record.getMessage() for record in records)

    # The third counts updates in one schedule, and has another that counts nothing.
    assert pool.run(2, told)[0] == 3


def test_what_the_process_has_once_must_not_differ(pool: Any) -> None:
    def differ() -> list[str]:
        first = Accelerator(cpu=True, mixed_precision="bf16")
        found = []
        for wrong in ({"mixed_precision": "no"}, {"mixed_precision": "fp16"}):
            with pytest.raises(StateError, match=r"mixed_precision: first 'bf16', now '(no|fp16)'") as caught:
                Accelerator(cpu=True, **wrong)
            found.append(str(caught.value))
        same = Accelerator(mixed_precision="bf16")
        unsaid = Accelerator()
        assert first.mixed_precision == same.mixed_precision == unsaid.mixed_precision == "bf16"
        assert first.device == same.device == unsaid.device
        return found

    (found,) = pool.run(1, differ)
    assert all("pass them to the first AcceleratorState or Accelerator" in text for text in found)


def test_a_process_that_may_use_other_devices_is_not_made_a_cpu_one_later(pool: Any) -> None:
    def later() -> str:
        Accelerator()
        try:
            second = Accelerator(cpu=True)
        except StateError as error:
            return str(error)
        # On a machine without accelerators both mean the same.
        return f"device {second.device}"

    (said,) = pool.run(1, later)
    assert re.search("cpu", said)


def test_what_one_prepared_the_other_refuses(pool: Any) -> None:
    def foreign() -> list[str]:
        loop, other = Loop(1, 1), Accelerator(cpu=True)
        found = []
        for thing in (loop.optimizer, loop.rate, loop.loader):
            with pytest.raises((PrepareError, AlreadyShardedError)) as caught:
                other.prepare(thing)
            found.append(str(caught.value))
        return found

    optimizer, rate, loader = pool.run(1, foreign)[0]
    assert "prepared by another Accelerator" in optimizer
    assert "prepared by another Accelerator" in rate
    assert "prepared already" in loader


def test_the_state_is_shared_and_can_be_reset(pool: Any) -> None:
    def reset() -> list[str]:
        Accelerator(cpu=True, mixed_precision="bf16")
        AcceleratorState._reset_state(reset_partial_state=True)
        return [Accelerator(cpu=True).mixed_precision]

    assert pool.run(1, reset) == [["no"]]
