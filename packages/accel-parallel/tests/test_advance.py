"""Many steps at once are as many single steps: for every schedule that torch has, from every position."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler, swa_utils

from accel_parallel.advance import advance, mover

pytestmark = pytest.mark.cpu

REL = 1e-9
"""Single steps multiply hundreds of rounded factors; a formula that is off by one step is off by per cent."""

Make = Callable[[torch.optim.Optimizer], Any]


def sequence(opt: torch.optim.Optimizer) -> Any:
    parts = [
        lr_scheduler.LinearLR(opt, 0.1, total_iters=6),
        lr_scheduler.CosineAnnealingLR(opt, 30, eta_min=1e-3),
        lr_scheduler.ExponentialLR(opt, 0.97),
    ]
    return lr_scheduler.SequentialLR(opt, parts, [7, 41])


def nested(opt: torch.optim.Optimizer) -> Any:
    inner = lr_scheduler.SequentialLR(
        opt, [lr_scheduler.ConstantLR(opt, 0.5, 3), lr_scheduler.StepLR(opt, 5, 0.8)], [4]
    )
    return lr_scheduler.SequentialLR(opt, [inner, lr_scheduler.LambdaLR(opt, lambda t: 1 / (1 + t))], [20])


MOVED: dict[str, Make] = {
    "lambda": lambda opt: lr_scheduler.LambdaLR(opt, lambda t: 1 / math.sqrt(1 + t)),
    "step": lambda opt: lr_scheduler.StepLR(opt, 7, gamma=0.5),
    "multi step": lambda opt: lr_scheduler.MultiStepLR(opt, [3, 9, 9, 40], gamma=0.3),
    "constant": lambda opt: lr_scheduler.ConstantLR(opt, 0.25, total_iters=11),
    "linear": lambda opt: lr_scheduler.LinearLR(opt, 0.1, 0.7, total_iters=13),
    "linear to zero": lambda opt: lr_scheduler.LinearLR(opt, 1.0, 0.0, total_iters=13),
    "exponential": lambda opt: lr_scheduler.ExponentialLR(opt, 0.95),
    "polynomial": lambda opt: lr_scheduler.PolynomialLR(opt, 17, power=2.0),
    "cosine": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 12, eta_min=1e-4),
    "cosine to zero": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 12),
    "restarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 5, 1, 1e-4),
    "growing restarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 5, 3),
    "one cycle": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=1.0, total_steps=200, three_phase=True),
    "cyclic": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.7, 5, 9, mode="triangular2"),
    "cyclic exp": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.7, 5, mode="exp_range", gamma=0.99),
    "sequence": sequence,
    "nested sequence": nested,
    "chain": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.1, 9), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
}


class OwnRate(lr_scheduler.LambdaLR):
    """A subclass that computes something else."""

    def get_lr(self) -> Any:
        return [rate / 2 for rate in super().get_lr()]


class OwnStep(lr_scheduler.StepLR):
    calls = 0

    def step(self, epoch: Any = None) -> None:
        self.calls += 1
        super().step(epoch)


STEPPED: dict[str, Make] = {
    "multiplicative": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda t: 1 - 1 / (t + 2)),
    "swa": lambda opt: swa_utils.SWALR(opt, swa_lr=0.05, anneal_epochs=20),
    "chain with a cosine": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.CosineAnnealingLR(opt, 12, 1e-3), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
    "sequence with a product": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.ConstantLR(opt), lr_scheduler.MultiplicativeLR(opt, lambda t: 0.9)], [5]
    ),
    "own rate": lambda opt: OwnRate(opt, lambda t: 1 / (1 + t)),
    "own step": lambda opt: OwnStep(opt, 3),
}


def optimizer(rate: float | torch.Tensor = 0.5) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.ones(2))]}, {"params": [nn.Parameter(torch.ones(1))], "lr": 0.2}]
    opt = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    for each in opt.param_groups:
        each["params"][0].grad = torch.ones_like(each["params"][0])
    return opt


def made(make: Make, opt: torch.optim.Optimizer) -> Any:
    """Return the schedule, ready to be stepped: torch warns when the optimizer was not stepped first."""
    with warnings.catch_warnings():
        # torch's own sequence inside a sequence steps before any optimizer could.
        warnings.filterwarnings("ignore", message="Detected call")
        schedule = make(opt)
    opt.step()
    return schedule


def assert_same(ours: Any, theirs: Any, where: str = "state") -> None:
    """Compare two states; functions in them are two makings of the same one."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), where
        for number, each in enumerate(theirs):
            assert_same(ours[number], each, f"{where}[{number}]")
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=REL, abs=1e-12), where
    elif not callable(theirs):
        assert ours == theirs, where


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from([*MOVED, *STEPPED]),
    jumps=st.lists(st.integers(0, 45), min_size=1, max_size=4),
    touched=st.none() | st.integers(0, 3),
)
def test_it_is_where_single_steps_lead(name: str, jumps: list[int], touched: int | None) -> None:
    make = {**MOVED, **STEPPED}[name]
    jumped, stepped = optimizer(), optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, theirs = made(make, jumped), made(make, stepped)
        for number, jump in enumerate(jumps):
            if number == touched:
                # Somebody halves the rate by hand.
                for each in (jumped, stepped):
                    for group in each.param_groups:
                        group["lr"] *= 0.5
            advance(ours, jump)
            for _ in range(jump):
                theirs.step()
            for ours_now, theirs_now in zip(jumped.param_groups, stepped.param_groups, strict=True):
                assert ours_now["lr"] == pytest.approx(theirs_now["lr"], rel=REL, abs=1e-12)
                assert ours_now["momentum"] == pytest.approx(theirs_now["momentum"], rel=REL)
            assert_same(ours.get_last_lr(), theirs.get_last_lr())
    assert_same(ours.state_dict(), theirs.state_dict())


def test_every_schedule_of_torch_is_in_this_test() -> None:
    tested = {type(made(make, optimizer())) for make in (*MOVED.values(), *STEPPED.values())}
    found = {
        cls
        for module in (lr_scheduler, swa_utils)
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, lr_scheduler.LRScheduler) and not cls.__name__.startswith("_")
    }
    # A plateau counts measurements; it is never moved by samples.
    assert found - tested == {lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau}


@pytest.mark.parametrize("name", [*MOVED, *STEPPED])
def test_which_of_them_move_at_once(name: str) -> None:
    assert (mover(made({**MOVED, **STEPPED}[name], optimizer())) is not None) == (name in MOVED)


@pytest.mark.parametrize("name", MOVED)
def test_many_steps_are_not_many_calls(name: str) -> None:
    """Counted, not timed: how often a Python function is entered."""
    import sys

    scheduler = made(MOVED[name], optimizer())
    if name == "one cycle":
        scheduler.total_steps, scheduler._schedule_phases[-1]["end_step"] = 20_000, 19_999.0
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        advance(scheduler, 10_000)
    finally:
        sys.setprofile(None)
    assert calls < 200
    assert name == "chain" or scheduler.last_epoch == 10_000


@pytest.mark.parametrize("name", ["step", "cosine", "lambda", "sequence"])
def test_a_rate_that_is_a_tensor_stays_the_same_tensor(name: str) -> None:
    rate = torch.tensor(0.5)
    jumped, stepped = (
        torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=each) for each in (rate, torch.tensor(0.5))
    )
    ours, theirs = made(MOVED[name], jumped), made(MOVED[name], stepped)
    advance(ours, 25)
    for _ in range(25):
        theirs.step()
    assert jumped.param_groups[0]["lr"] is rate
    # fp32: 25 rounded factors.
    assert float(rate) == pytest.approx(float(stepped.param_groups[0]["lr"]), rel=1e-5)
