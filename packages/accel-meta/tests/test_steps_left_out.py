"""Gradients that were divided by the loss scale are never added to gradients that were not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from accel import Accelerator
from accel.utils import AutocastKwargs, GradScalerKwargs
from accel_core.errors import StateError
from accel_state import process


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    process.reset()


def start(models: int = 1) -> tuple[Accelerator, list[nn.Module], list[Any]]:
    # Autocast is off and models are float64: only the scale is looked at.
    accelerator = Accelerator(
        cpu=True,
        mixed_precision="fp16",
        kwargs_handlers=[AutocastKwargs(enabled=False), GradScalerKwargs(init_scale=1024.0)],
    )
    raw = [nn.Linear(3, 1, bias=False).double() for _ in range(models)]
    for each in raw:
        nn.init.constant_(each.weight, 0.5)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.0) for each in raw]
    return (
        accelerator,
        [accelerator.prepare(each) for each in raw],
        [accelerator.prepare(each) for each in optimizers],
    )


def step(accelerator: Accelerator, model: nn.Module) -> float:
    """Compute gradients and return their norm; it is 2 * 1.5 * sqrt(3) for one backward."""
    accelerator.backward(model(torch.ones(1, 3, dtype=torch.float64)).square().sum())
    return float(accelerator.clip_grad_norm_(model.parameters(), 1e9))


NORM = pytest.approx(3 * 3**0.5)


def test_a_step_that_is_left_out_without_clearing_is_an_error() -> None:
    accelerator, (model,), _ = start()
    assert step(accelerator, model) == NORM
    with pytest.raises(StateError, match="divided by the loss scale already"):
        step(accelerator, model)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("by", ["optimizer", "model"])
def test_a_step_that_is_left_out_and_cleared(by: str, set_to_none: bool) -> None:
    accelerator, (model,), (optimizer,) = start()
    for _ in range(3):
        assert step(accelerator, model) == NORM
        (optimizer if by == "optimizer" else model).zero_grad(set_to_none=set_to_none)


def test_a_backward_of_another_model_in_between() -> None:
    accelerator, (first, second), optimizers = start(2)
    for _ in range(3):
        assert step(accelerator, first) == NORM
        assert step(accelerator, second) == NORM
        for optimizer in optimizers:
            optimizer.step()
            assert not optimizer.step_was_skipped
            optimizer.zero_grad()


def test_the_step_of_another_optimizer_does_not_make_them_new() -> None:
    accelerator, (first, second), (optimizer, _) = start(2)
    step(accelerator, first)
    step(accelerator, second)
    optimizer.step()
    optimizer.zero_grad()
    assert step(accelerator, first) == NORM
    with pytest.raises(StateError, match="clipped or unscaled"):
        step(accelerator, second)
