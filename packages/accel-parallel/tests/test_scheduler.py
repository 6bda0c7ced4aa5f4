"""Real learning rate schedules, wrapped and stepped as documented, against plain stepping."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from accel_core.errors import ConfigError
from accel_core.window import GradientWindow
from accel_parallel import AcceleratedOptimizer, AcceleratedScheduler

pytestmark = pytest.mark.cpu

SCHEDULES = {
    "step": lambda opt: lr_scheduler.StepLR(opt, 3, gamma=0.5),
    "cosine": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 20),
    "lambda": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step)),
    "onecycle": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=1.0, total_steps=60),
    "sequential": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, total_iters=4), lr_scheduler.ExponentialLR(opt, 0.9)], [4]
    ),
}


def optimizer():
    # Momentum and betas, which one-cycle schedules move too.
    return torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.5, momentum=0.9)


def take_step(raw):
    raw.param_groups[0]["params"][0].grad = torch.ones(2)
    raw.step()


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    num_processes=st.integers(1, 4),
    split=st.booleans(),
    accumulate=st.integers(1, 3),
    micro_batches=st.integers(0, 14),
)
def test_an_update_steps_once_per_process(name, num_processes, split, accumulate, micro_batches):
    raw = optimizer()
    window = GradientWindow(accumulate)
    opt = AcceleratedOptimizer(raw, window=window)
    scheduler = AcceleratedScheduler(
        SCHEDULES[name](raw), [opt], split_batches=split, window=window, num_processes=num_processes
    )
    for _ in range(micro_batches):
        window.advance()
        raw.param_groups[0]["params"][0].grad = torch.ones(2)
        opt.step()
        scheduler.step()
        window.leave()

    plain = optimizer()
    expected = SCHEDULES[name](plain)
    for _ in range((micro_batches // accumulate) * (1 if split else num_processes)):
        take_step(plain)
        expected.step()
    assert scheduler.get_last_lr() == expected.get_last_lr()
    assert raw.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
    assert raw.param_groups[0]["momentum"] == plain.param_groups[0]["momentum"]


def test_a_skipped_step_of_any_optimizer_holds_the_schedule():
    first, second = optimizer(), optimizer()
    scaler = torch.amp.GradScaler("cpu")
    pair = [AcceleratedOptimizer(first), AcceleratedOptimizer(second, scaler=scaler)]
    scheduler = AcceleratedScheduler(SCHEDULES["step"](first), pair, num_processes=3)

    def update(value):
        scaler.scale(torch.ones(()))
        for each in (first, second):
            each.param_groups[0]["params"][0].grad = torch.full((2,), value)
        for each in pair:
            each.step()
        scheduler.step()

    update(torch.inf)
    assert scheduler.last_epoch == 0
    update(1.0)
    assert scheduler.last_epoch == 3


def test_without_following_every_call_steps_once():
    raw = optimizer()
    window = GradientWindow(4)
    scheduler = AcceleratedScheduler(
        SCHEDULES["step"](raw),
        AcceleratedOptimizer(raw, window=window),
        False,
        window=window,
        num_processes=3,
    )
    take_step(raw)
    for _ in range(3):
        window.advance()
        scheduler.step()
    assert scheduler.last_epoch == 3


@pytest.mark.parametrize("adjust", [True, False])
def test_accumulated_calls_are_counted_when_asked(adjust):
    raw = optimizer()
    window = GradientWindow(3, adjust_scheduler=adjust)
    scheduler = AcceleratedScheduler(
        SCHEDULES["step"](raw), AcceleratedOptimizer(raw, window=window), window=window
    )
    window.advance()
    scheduler.step()
    window.advance()
    scheduler.step()
    assert scheduler._step_count == (3 if adjust else 1)
    assert scheduler.last_epoch == 0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_schedule_that_ends_stays_at_its_end_and_says_so_once(accumulate, caplog):
    raw = optimizer()
    window = GradientWindow(accumulate)
    opt = AcceleratedOptimizer(raw, window=window)
    scheduler = AcceleratedScheduler(
        lr_scheduler.OneCycleLR(raw, max_lr=1.0, total_steps=9), opt, window=window, num_processes=4
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(5 * accumulate):
            window.advance()
            raw.param_groups[0]["params"][0].grad = torch.ones(2)
            opt.step()
            scheduler.step()
            window.leave()
    plain = optimizer()
    expected = lr_scheduler.OneCycleLR(plain, max_lr=1.0, total_steps=9)
    for _ in range(9):
        take_step(plain)
        expected.step()
    assert scheduler.get_last_lr() == expected.get_last_lr()
    assert [record.getMessage().split(" and")[0] for record in caplog.records] == [
        "OneCycleLR has reached its total_steps=9"
    ]


def test_on_one_process_an_overrun_raises_as_in_torch():
    raw = optimizer()
    scheduler = AcceleratedScheduler(
        lr_scheduler.OneCycleLR(raw, max_lr=1.0, total_steps=2), AcceleratedOptimizer(raw)
    )
    take_step(raw)
    scheduler.step()
    scheduler.step()
    with pytest.raises(ValueError, match="number of total steps is 2"):
        scheduler.step()


def test_a_plateau_hears_each_measurement_once():
    raw, plain = optimizer(), optimizer()
    window = GradientWindow(8)
    scheduler = AcceleratedScheduler(
        lr_scheduler.ReduceLROnPlateau(raw, patience=2),
        AcceleratedOptimizer(raw, window=window),
        window=window,
        num_processes=4,
    )
    expected = lr_scheduler.ReduceLROnPlateau(plain, patience=2)
    window.advance()  # a validation in the middle of a window
    for metric in (3.0, 2.0, 2.0, 2.0, 2.0, 2.0):
        scheduler.step(metric)
        expected.step(metric)
        assert scheduler.get_last_lr() == expected.get_last_lr()
    assert raw.param_groups[0]["lr"] == pytest.approx(0.05)
    scheduler.step(metrics=1.0)
    assert scheduler.best == 1.0


def test_state_goes_through():
    raw = optimizer()
    scheduler = AcceleratedScheduler(SCHEDULES["cosine"](raw), AcceleratedOptimizer(raw), num_processes=2)
    take_step(raw)
    scheduler.step()
    other = optimizer()
    twin = AcceleratedScheduler(SCHEDULES["cosine"](other), AcceleratedOptimizer(other), num_processes=2)
    twin.load_state_dict(scheduler.state_dict())
    assert twin.last_epoch == 2
    assert twin.state_dict() == scheduler.state_dict()


def test_rates_can_be_read_and_printed(capsys):
    raw = optimizer()
    scheduler = AcceleratedScheduler(SCHEDULES["step"](raw), AcceleratedOptimizer(raw))
    scheduler.print_lr()
    assert "0.5" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="get_last_lr"):
        assert scheduler.get_lr() == [0.5]
    assert "StepLR" in repr(scheduler)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = scheduler.nonsense


@pytest.mark.parametrize("number", [0, -1, 2.0, True])
def test_a_wrong_number_of_processes_is_refused(number):
    raw = optimizer()
    with pytest.raises(ConfigError, match="num_processes"):
        AcceleratedScheduler(SCHEDULES["step"](raw), AcceleratedOptimizer(raw), num_processes=number)
