"""A rank that does not come to the forward of a shared model, where torch sends buffers."""

from __future__ import annotations

import copy
import os
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn

from accel import Accelerator, InitProcessGroupKwargs
from accel_core.errors import CollectiveError

LIMIT = timedelta(seconds=3)


def prepared(*, buffers: bool = True) -> tuple[Accelerator, nn.Module]:
    accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=LIMIT)])
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3) if buffers else nn.Identity(), nn.Linear(3, 1))
    return accelerator, accelerator.prepare(model)


def step(accelerator: Accelerator, model: nn.Module) -> None:
    accelerator.backward(model(torch.ones(4, 3)).sum())


@pytest.mark.world(2)
@pytest.mark.parametrize("buffers", [True, False], ids=["buffers", "buckets"])
def test_a_rank_that_is_late_is_named_with_the_line_of_the_forward(
    pool: Any, world: int, *, buffers: bool
) -> None:
    def run() -> str:
        accelerator, model = prepared(buffers=buffers)
        step(accelerator, model)
        if accelerator.process_index == 1:
            time.sleep(5)
            return ""
        with pytest.raises(CollectiveError) as caught:
            step(accelerator, model)
        assert isinstance(caught.value.__cause__, RuntimeError)
        return str(caught.value)

    told = pool.run(world, run)[0]
    assert "forward did not finish within 0:00:03: a rank did not call it, or is late" in told
    assert "rank 0 of 2" in told
    assert "test_lost_in_forward.py:" in told
    assert "- Process 1: no word" in told


@pytest.mark.world(2)
def test_a_rank_that_is_gone_is_reported_as_such(pool: Any, world: int) -> None:
    def run() -> None:
        accelerator, model = prepared()
        step(accelerator, model)
        if accelerator.process_index == 1:
            os._exit(3)
        step(accelerator, model)

    errors = pool.failures(world, run)
    assert isinstance(errors[0], CollectiveError)
    assert "forward lost a rank" in str(errors[0])


@pytest.mark.world(2)
def test_an_error_of_the_model_itself_stays_what_it_is(pool: Any, world: int) -> None:
    def run() -> None:
        accelerator, model = prepared()
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            model(torch.ones(4, 5))
        step(accelerator, model)

    pool.run(world, run)


@pytest.mark.world(2)
def test_a_container_can_be_copied(pool: Any, world: int) -> None:
    """What explains its failures lies beside it, since weak references are not copied."""

    def run() -> None:
        _, model = prepared()
        twin = copy.deepcopy(model)
        assert torch.equal(twin(torch.ones(4, 3)), model(torch.ones(4, 3)))

    pool.run(world, run)
