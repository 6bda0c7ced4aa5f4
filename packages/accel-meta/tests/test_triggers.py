"""Triggers: raised by any rank, seen by all, gone after the check."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from accel import Accelerator
from accel.utils import InitProcessGroupKwargs

NAMES = (("set_trigger", "check_trigger"), ("set_breakpoint", "check_breakpoint"))


@pytest.mark.world(1, 2, 4)
@pytest.mark.parametrize(("put", "check"), NAMES)
@pytest.mark.parametrize("debug", [False, True])
def test_one_rank_raises_and_all_see_it_once(
    pool: Any, world: int, put: str, check: str, debug: bool
) -> None:
    def run() -> list[bool]:
        accelerator = Accelerator(cpu=True)
        seen = [getattr(accelerator, check)()]
        if accelerator.is_last_process:
            getattr(accelerator, put)()
            getattr(accelerator, put)()
        seen += [getattr(accelerator, check)(), getattr(accelerator, check)()]
        getattr(accelerator, put)()
        return [*seen, getattr(accelerator, check)()]

    env = {"ACCELERATE_DEBUG_MODE": "1"} if debug else None
    assert pool.run(world, run, env=env) == [[False, True, False, True]] * world


@pytest.mark.world(2)
def test_triggers_belong_to_one_accelerator(pool: Any) -> None:
    def run() -> list[bool]:
        first, second = Accelerator(cpu=True), Accelerator(cpu=True)
        first.set_trigger()
        return [second.check_trigger(), first.check_trigger()]

    assert pool.run(2, run) == [[False, True]] * 2


@pytest.mark.world(1, 2)
def test_early_stopping_ends_all_ranks_at_the_same_step(pool: Any, world: int) -> None:
    """The documented example: the loss differs from rank to rank, and so does who would stop."""

    def run() -> tuple[int, int | None, bool]:
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        data = TensorDataset(torch.arange(64.0)[:, None], torch.zeros(64, 1))
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=4))
        mine = None
        steps = 0
        for x, y in loader:
            steps += 1
            loss = nn.functional.mse_loss(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            if x.max().item() >= 23 and mine is None:  # in the third round, on the last rank only
                mine = steps
                accelerator.set_trigger()
            if accelerator.check_trigger():
                break
        # The next epoch starts on all ranks together: nobody was left behind.
        return steps, mine, next(iter(loader))[0].shape == (4, 1)

    found = pool.run(world, run)
    want = {1: [(6, 6, True)], 2: [(3, None, True), (3, 3, True)]}
    assert found == want[world]


@pytest.mark.world(2)
@pytest.mark.parametrize("debug", [False, True])
def test_another_exchange_instead_is_named_on_both_ranks(pool: Any, debug: bool) -> None:
    def run() -> None:
        accelerator = Accelerator(cpu=True)
        if accelerator.is_main_process:
            accelerator.check_trigger()
        else:
            accelerator.gather(torch.ones(2))

    env = {"ACCELERATE_DEBUG_MODE": "1"} if debug else None
    for error in pool.failures(2, run, env=env):
        assert type(error).__name__ == "DistributedOperationException"
        assert "Process 0: nothing, check_trigger at" in str(error)
        assert "Process 1: [2] torch.float32, gather at" in str(error)


@pytest.mark.world(2)
def test_a_rank_that_does_not_check_is_waited_for_no_longer_than_the_timeout(pool: Any) -> None:
    def run() -> str:
        handler = InitProcessGroupKwargs(timeout=timedelta(seconds=2))
        accelerator = Accelerator(cpu=True, kwargs_handlers=[handler])
        accelerator.check_trigger()
        if not accelerator.is_main_process:
            import time

            time.sleep(6)
            return "slept"
        accelerator.set_trigger()
        with pytest.raises(Exception, match="check_trigger did not finish within 0:00:02") as caught:
            accelerator.check_trigger()
        assert type(caught.value).__name__ == "CollectiveError"
        assert accelerator._trigger, "a flag that nobody heard of must not be lost"
        return str(caught.value)

    first, second = pool.run(2, run)
    assert "rank 0 of 2" in first
    assert second == "slept"
