"""Real learning rate schedules, wrapped and stepped as documented, against plain stepping."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from accel_core.errors import CheckpointError, ConfigError, PrepareError, StateError, UnknownNameError
from accel_core.window import GradientWindow, LoaderCursor
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


# -- counted in something else -----------------------------------------------------------------


def counted(unit, make=SCHEDULES["cosine"], window=None, **settings):
    raw = optimizer()
    window = window or GradientWindow()
    opt = AcceleratedOptimizer(raw, window=window)
    return raw, opt, AcceleratedScheduler(make(raw), opt, window=window, schedule_in=unit, **settings)


def read(window, cursor, samples, padding=0):
    """Do what a loader does before it hands a batch out, and what ``backward`` does with it."""
    cursor.world_batch, cursor.valid = samples + padding, samples if padding else None
    cursor.hand_out()
    window.filled = True


def compute(raw, opt):
    raw.param_groups[0]["params"][0].grad = torch.ones(2)
    opt.step()


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    accumulate=st.integers(1, 3),
    batches=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=12),
)
def test_samples_move_it_wherever_they_were_read(name, accumulate, batches):
    window, cursor = GradientWindow(accumulate), LoaderCursor()
    raw, opt, scheduler = counted("samples", SCHEDULES[name], window, num_processes=4)
    window.push(cursor)
    done = samples = 0
    for number, (real, padding) in enumerate(batches, start=1):
        window.advance()
        read(window, cursor, real, padding)
        # An evaluation in the middle is another loader.
        window.push(other := LoaderCursor())
        other.world_batch = 1000
        other.hand_out()
        window.remove(other)
        compute(raw, opt)
        scheduler.step()
        window.leave()
        samples += real
        done = samples if number % accumulate == 0 else done

    plain = optimizer()
    expected = SCHEDULES[name](plain)
    take_step(plain)
    for _ in range(done):
        expected.step()
    assert scheduler.get_last_lr() == pytest.approx(expected.get_last_lr(), rel=1e-12)
    assert raw.param_groups[0]["momentum"] == pytest.approx(plain.param_groups[0]["momentum"], rel=1e-12)


def test_one_batch_counts_once_for_each_of_two_schedules():
    window, cursor = GradientWindow(), LoaderCursor()
    pair = [counted("samples", window=window) for _ in range(2)]
    window.push(cursor)
    for _ in range(3):
        cursor.world_batch = 4
        cursor.hand_out()
        for raw, opt, scheduler in pair:
            for _ in range(2):
                window.filled = True
            compute(raw, opt)
            scheduler.step()
    assert [scheduler.last_epoch for _, _, scheduler in pair] == [12, 12]


def test_samples_of_a_skipped_step_do_not_move_it():
    window, cursor = GradientWindow(), LoaderCursor()
    raw = optimizer()
    opt = AcceleratedOptimizer(raw, window=window, scaler=torch.amp.GradScaler("cpu"))
    scheduler = AcceleratedScheduler(SCHEDULES["step"](raw), opt, window=window, schedule_in="samples")
    window.push(cursor)
    for value in (torch.inf, 1.0):
        opt.scaler.scale(torch.ones(()))
        read(window, cursor, 4)
        raw.param_groups[0]["params"][0].grad = torch.full((2,), value)
        opt.step()
        scheduler.step()
    assert scheduler.last_epoch == 4


def test_batches_that_were_read_before_it_was_made_do_not_move_it():
    window, cursor = GradientWindow(), LoaderCursor()
    window.push(cursor)
    cursor.world_batch = 4
    cursor.hand_out()
    raw, opt, scheduler = counted("samples", window=window)
    read(window, cursor, 4)
    compute(raw, opt)
    scheduler.step()
    assert scheduler.last_epoch == 4


def test_samples_that_nobody_counted_are_an_error_and_not_a_standstill():
    window, cursor = GradientWindow(), LoaderCursor()
    raw, opt, scheduler = counted("samples", window=window)
    window.filled = True
    compute(raw, opt)
    with pytest.raises(StateError, match=r"nobody knows how many(.|\n)*1 backward\(s\) outside"):
        scheduler.step()
    with pytest.raises(StateError, match="none were used since its latest step"):
        scheduler.step()
    window.push(cursor)
    cursor.hand_out()  # a batch of a size that the loader does not know
    window.filled = True
    compute(raw, opt)
    with pytest.raises(StateError, match="no known size"):
        scheduler.step()


def test_tokens_move_it_by_the_weight_of_the_window():
    window = GradientWindow()
    raw, opt, scheduler = counted("tokens", window=window, num_processes=2)
    for weight in (3.0, 5.0):
        window.weight, window.weighings = weight, window.weighings + 1
        compute(raw, opt)
        scheduler.step()
    assert scheduler.last_epoch == 8
    with pytest.raises(StateError, match="no weight for this update"):
        scheduler.step()
    window.weight, window.weighings = 2.5, window.weighings + 1
    with pytest.raises(StateError, match=r"add up to 2\.5"):
        scheduler.step()
    assert scheduler.last_epoch == 8


def test_updates_move_it_once_on_any_number_of_processes():
    raw, opt, scheduler = counted("updates", num_processes=4)
    for _ in range(3):
        compute(raw, opt)
        scheduler.step()
    assert scheduler.last_epoch == 3


def test_an_overrun_stays_at_the_end_and_is_told_once(caplog):
    window, cursor = GradientWindow(), LoaderCursor()
    raw, opt, scheduler = counted("samples", SCHEDULES["onecycle"], window)
    window.push(cursor)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            read(window, cursor, 35)
            compute(raw, opt)
            scheduler.step()
    assert scheduler.last_epoch == 60
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("OneCycleLR has reached its total_steps=60 and stays there: it counts samples;")


@pytest.mark.parametrize(
    ("unit", "make", "settings", "said"),
    [
        ("samples", lr_scheduler.ReduceLROnPlateau, {}, "counts measurements, not samples"),
        ("updates", SCHEDULES["step"], {"step_with_optimizer": False}, "does not follow its optimizer"),
        ("tokens", lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda _: 0.9), {}, "one by one"),
    ],
)
def test_what_cannot_be_counted_so_is_refused(unit, make, settings, said):
    with pytest.raises(PrepareError, match=said):
        counted(unit, make, **settings)


def test_an_unknown_unit_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'samples'"):
        counted("sample")


def test_a_position_is_not_loaded_into_another_unit():
    window, cursor = GradientWindow(), LoaderCursor()
    raw, opt, samples = counted("samples", window=window)
    window.push(cursor)
    read(window, cursor, 4)
    compute(raw, opt)
    samples.step()
    state = samples.state_dict()
    assert state["schedule_in"] == "samples"
    twin = counted("samples")[2]
    twin.load_state_dict(state)
    assert (twin.last_epoch, twin.state_dict()) == (4, state)
    for other in (None, "updates", "tokens"):
        with pytest.raises(CheckpointError, match=f"this one has {other!r}"):
            counted(other)[2].load_state_dict(state)
    plain = SCHEDULES["cosine"](optimizer()).state_dict()
    counted("updates")[2].load_state_dict(plain)
    with pytest.raises(CheckpointError, match="schedule_in=None"):
        counted("samples")[2].load_state_dict(plain)


def test_a_position_in_samples_takes_no_epoch():
    window, cursor = GradientWindow(), LoaderCursor()
    raw, opt, scheduler = counted("samples", window=window)
    window.push(cursor)
    read(window, cursor, 4)
    compute(raw, opt)
    with pytest.raises(TypeError, match="takes no arguments"):
        scheduler.step(3)
