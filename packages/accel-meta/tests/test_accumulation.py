"""Windows against plain PyTorch: every step's gradient is the mean over the micro-batches of its window."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from accel import Accelerator
from accel.utils import GradientAccumulationPlugin, GradScalerKwargs
from accel_core.errors import StateError

REL = 1e-12
"""float64: the sums are taken in another order; a wrong divisor is off by per cent."""
SIZE = 2


class Stream(IterableDataset[Any]):
    """The same samples without a length."""

    def __init__(self, items: Any) -> None:
        self.items = list(items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


@dataclass(frozen=True)
class Epoch:
    """One pass over the data: how many global batches, of what kind, and what happens on the way."""

    batches: int
    known: bool
    leave_after: int | None
    """Micro-batches after which the loop is left by ``break``; None: never."""
    evaluate_every: int | None
    """Evaluate with a prepared loader, every so many micro-batches, before the step is taken."""
    leave_evaluation: bool
    num_steps: int | None
    """Change ``gradient_accumulation_steps`` before this epoch; None: keep it."""


epochs = st.lists(
    st.builds(
        Epoch,
        batches=st.integers(1, 9),
        known=st.booleans(),
        leave_after=st.none() | st.integers(1, 9),
        evaluate_every=st.none() | st.integers(1, 3),
        leave_evaluation=st.booleans(),
        num_steps=st.none() | st.integers(1, 5),
    ),
    min_size=1,
    max_size=4,
)


def samples(count: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().mean()


def network(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(4, 4).double()


def train(plan: list[Epoch], num_steps: int, together: bool) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """Return for each update the gradient, plain PyTorch's for its samples, and its micro-batches."""
    plugin = GradientAccumulationPlugin(num_steps=num_steps, sync_with_dataloader=together)
    accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
    plain = network()
    model = accelerator.prepare(network())
    # Learning rate 0: all gradients are taken at the same weights, so the reference needs no training.
    optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.0))
    test = accelerator.prepare(DataLoader(Stream(samples(5)), batch_size=SIZE))
    updates: list[tuple[torch.Tensor, torch.Tensor, int]] = []
    window: list[torch.Tensor] = []
    for number, epoch in enumerate(plan):
        if epoch.num_steps is not None:
            accelerator.gradient_accumulation_steps = epoch.num_steps
        data = samples(epoch.batches * SIZE * accelerator.num_processes, seed=number)
        given: Any = TensorDataset(data) if epoch.known else Stream((row,) for row in data)
        for step, (x,) in enumerate(accelerator.prepare(DataLoader(given, batch_size=SIZE)), start=1):
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, x))
                window.append(accelerator.gather(x))
                if epoch.evaluate_every and step % epoch.evaluate_every == 0:
                    for _ in test:
                        if epoch.leave_evaluation:
                            break
                if accelerator.sync_gradients:
                    plain.zero_grad()
                    loss_of(plain, torch.cat(window)).backward()
                    found = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (model, plain)]
                    updates.append((found[0], found[1], len(window)))
                    window = []
                optimizer.step()
                optimizer.zero_grad()
            if step == epoch.leave_after:
                break
    return updates


def expected_windows(plan: list[Epoch], num_steps: int, together: bool) -> list[int]:
    """Count micro-batches as the documentation words it."""
    sizes, position = [], 0
    for epoch in plan:
        num_steps = epoch.num_steps or num_steps
        seen = min(epoch.batches, epoch.leave_after or epoch.batches)
        for step in range(1, seen + 1):
            position += 1
            if position >= num_steps or (together and step == epoch.batches):
                sizes.append(position)
                position = 0
    return sizes


@pytest.mark.parametrize("world", [1, 2])
def test_every_step_is_the_mean_over_its_window(world: int, pool: Any) -> None:
    @settings(max_examples=40, deadline=None)
    @given(plan=epochs, num_steps=st.integers(1, 5), together=st.booleans())
    def check(plan: list[Epoch], num_steps: int, together: bool) -> None:
        if not together:
            # Windows then run over the end of the data with a full divisor, whatever the length becomes.
            plan = [
                Epoch(e.batches, e.known, e.leave_after, e.evaluate_every, e.leave_evaluation, None)
                for e in plan
            ]
        for updates in pool.run(world, train, plan, num_steps, together):
            assert [size for _, _, size in updates] == expected_windows(plan, num_steps, together)
            for gradient, wanted, _ in updates:
                assert ((gradient - wanted).norm() / wanted.norm()).item() < REL

    check()


# -- short windows reach every parameter, once ---------------------------------------------------------------


def test_a_parameter_of_two_models_is_corrected_once(pool: Any) -> None:
    def ratio() -> float:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
        body = network(1)
        both = nn.Sequential(body, network(2))
        x = samples(6)
        loss_of(both, x).backward()
        wanted = body.weight.grad.clone()
        both.zero_grad()
        optimizer = torch.optim.SGD(both.parameters(), lr=0.1)
        loader = DataLoader(Stream(x), batch_size=SIZE)
        body, both, optimizer, loader = accelerator.prepare(body, both, optimizer, loader)
        for batch in loader:
            with accelerator.accumulate(body, both):
                accelerator.backward(loss_of(both, batch))
        return float((body.weight.grad - wanted).norm() / wanted.norm())

    assert pool.run(1, ratio)[0] < REL


def test_parameters_that_only_the_optimizer_holds_are_corrected(pool: Any) -> None:
    def ratio() -> float:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
        weight = nn.Parameter(torch.ones(4, dtype=torch.float64))
        x = samples(6)
        (x * weight).square().mean().backward()
        wanted = weight.grad.clone()
        weight.grad = None
        loader = DataLoader(Stream(x), batch_size=SIZE)
        _, loader = accelerator.prepare(torch.optim.SGD([weight], lr=0.1), loader)
        for batch in loader:
            with accelerator.accumulate():
                accelerator.backward((batch * weight).square().mean())
        return float((weight.grad - wanted).norm() / wanted.norm())

    assert pool.run(1, ratio)[0] < REL


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("each_batch", [False, True])
def test_adversarial_training_with_accumulation(world: int, each_batch: bool, pool: Any) -> None:
    """Two models, two losses, one output used by both; against plain PyTorch, short window included."""
    rounds, steps = 5, 2

    def losses_of(maker: Any, judge: Any, z: torch.Tensor) -> Iterator[torch.Tensor]:
        made = maker(z)
        yield judge(made.detach()).square().mean() - judge(z).mean()
        yield judge(made).sin().mean()

    def ours() -> list[list[torch.Tensor]]:
        plugin = GradientAccumulationPlugin(num_steps=steps, sync_each_batch=each_batch)
        accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
        maker, judge = network(1), network(2)
        loader = DataLoader(samples(rounds * SIZE * world), batch_size=SIZE)  # type: ignore[arg-type]
        maker, judge, loader = accelerator.prepare(maker, judge, loader)
        updates = []
        for z in loader:
            with accelerator.accumulate(maker, judge):
                losses = losses_of(maker, judge, z)
                accelerator.backward(next(losses))
                kept = [parameter.grad.clone() for parameter in judge.parameters()]
                accelerator.backward(next(losses))
                # The maker's loss goes through the judge too; that is not the judge's gradient.
                for parameter, gradient in zip(judge.parameters(), kept, strict=True):
                    parameter.grad = gradient
                if accelerator.sync_gradients:
                    updates.append([p.grad.clone() for m in (judge, maker) for p in m.parameters()])
                    judge.zero_grad()
                    maker.zero_grad()
        return updates

    maker, judge = network(1), network(2)
    data = samples(rounds * SIZE * world)
    results = pool.run(world, ours)
    for number, start in enumerate(range(0, len(data), steps * SIZE * world)):
        part = data[start : start + steps * SIZE * world]
        first, second = losses_of(maker, judge, part)
        wanted = [
            *torch.autograd.grad(first, list(judge.parameters())),
            *torch.autograd.grad(second, list(maker.parameters())),
        ]
        for updates in results:
            assert len(updates) == -(-rounds // steps)
            for got, want in zip(updates[number], wanted, strict=True):
                assert ((got - want).norm() / want.norm()).item() < REL


# -- what is refused -----------------------------------------------------------------------------------------


def test_one_accumulate_inside_another_is_refused(pool: Any) -> None:
    def nest() -> list[bool]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
        first, second = accelerator.prepare(network(1), network(2))
        with (
            pytest.raises(StateError, match=r"accumulate\(first, second\)"),
            accelerator.accumulate(first),
            accelerator.accumulate(second),
        ):
            pass
        closes = []
        # The outer one does not count: it had no backward.
        for _ in range(3):
            with accelerator.accumulate(first):
                closes.append(accelerator.sync_gradients)
        return closes

    assert pool.run(1, nest) == [[False, False, True]]


@pytest.mark.parametrize("fails_at", range(4))
def test_a_micro_batch_that_fails_before_its_backward_is_tried_again(fails_at: int, pool: Any) -> None:
    """Out of memory in a forward, caught and tried again: the window is as if it had not happened."""

    def seen(fails_at: int) -> tuple[list[float], list[bool]]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = nn.Linear(1, 1, bias=False)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))
        found, after = [], []
        for number in range(4):
            if number == fails_at:
                with pytest.raises(MemoryError), accelerator.accumulate(model):
                    raise MemoryError
                after.append(accelerator.sync_gradients)
            with accelerator.accumulate(model):
                accelerator.backward(model(torch.full((1, 1), float(number))).sum())
                if accelerator.sync_gradients:
                    found.append(float(model.weight.grad))
                optimizer.step()
                optimizer.zero_grad()
        return found, after

    # Whether the micro-batch before it had closed a window.
    assert pool.run(1, seen, fails_at) == [([0.5, 2.5], [fails_at % 2 == 0])]


def test_weights_of_a_micro_batch_that_is_tried_again_count_once(pool: Any) -> None:
    def seen() -> list[float]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
        model = nn.Linear(1, 1, bias=False)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))
        found = []
        for number in range(6):
            with suppress(MemoryError), accelerator.accumulate(model):
                raise MemoryError
            with accelerator.accumulate(model):
                x = torch.full((number + 1, 1), float(number))
                accelerator.backward(model(x).sum(), weight=len(x))
                if accelerator.sync_gradients:
                    found.append(float(model.weight.grad))
                optimizer.step()
                optimizer.zero_grad()
        return found

    # The mean over 1 + 2 + 3 and over 4 + 5 + 6 samples; fp32.
    assert pool.run(1, seen)[0] == pytest.approx([(2 + 6) / 6, (12 + 20 + 30) / 15], rel=1e-6)


def test_a_micro_batch_that_fails_after_its_backward_counts(pool: Any) -> None:
    def closes() -> list[bool]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = accelerator.prepare(network())
        found = []
        for number in range(3):
            with suppress(ZeroDivisionError), accelerator.accumulate(model):
                found.append(accelerator.sync_gradients)
                accelerator.backward(loss_of(model, samples(SIZE)))
                _ = 1 / number
        return found

    assert pool.run(1, closes) == [[False, True, False]]


def test_models_taking_turns_within_a_window_are_refused(pool: Any) -> None:
    def turns() -> list[bool]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        first, second = accelerator.prepare(network(1), network(2))
        closes = []
        for model in (first, first, second, second):
            with accelerator.accumulate(model):
                closes.append(accelerator.sync_gradients)
        for models in ((first, second), (second, first), (), ()):
            with accelerator.accumulate(*models):
                closes.append(accelerator.sync_gradients)
        with accelerator.accumulate(first):
            pass
        with pytest.raises(StateError, match=r"after micro-batch 1 of 2"), accelerator.accumulate(second):
            pass
        with accelerator.accumulate(first):
            closes.append(accelerator.sync_gradients)
        return closes

    assert pool.run(1, turns) == [[False, True] * 4 + [True]]


def test_clearing_over_what_was_never_cleared_is_refused(pool: Any) -> None:
    """Cleared in the closing micro-batch only: it would leave one micro-batch of a window."""

    def only_when_closing() -> None:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = network()
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(4):
            with accelerator.accumulate(model):
                if accelerator.sync_gradients:
                    optimizer.zero_grad()
                accelerator.backward(loss_of(model, samples(SIZE)))
                optimizer.step()

    for error in pool.failures(1, only_when_closing):
        assert isinstance(error, StateError)
        assert "the gradients of the 1 micro-batch(es) before it" in str(error)


@pytest.mark.parametrize("place", ["before", "first", "first and after", "after", "dropped"])
def test_clearing_may_stand_anywhere_else(place: str, pool: Any) -> None:
    """The documents show it first in the micro-batch, last in it, and both."""

    def loop() -> list[float]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = nn.Linear(1, 1, bias=False)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))
        seen = []
        for number in range(6):
            if place == "before":
                optimizer.zero_grad()
            with accelerator.accumulate(model):
                if "first" in place:
                    optimizer.zero_grad()
                accelerator.backward(model(torch.full((1, 1), float(number))).sum())
                if accelerator.sync_gradients:
                    seen.append(float(model.weight.grad))
                if place != "dropped" or number != 3:
                    optimizer.step()
                if place not in {"before", "first"}:
                    optimizer.zero_grad()
        return seen

    assert pool.run(1, loop) == [[0.5, 2.5, 4.5]]


def test_free_memory_gives_an_open_window_up(pool: Any) -> None:
    def sizes() -> list[bool]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
        closes = []
        for _ in range(2):
            model = accelerator.prepare(network())
            for _ in range(2):
                with accelerator.accumulate(model):
                    closes.append(accelerator.sync_gradients)
            accelerator.free_memory()
        return closes

    assert pool.run(1, sizes) == [[False] * 4]


# -- fp16 ----------------------------------------------------------------------------------------------------


def half(**options: Any) -> Accelerator:
    handlers = [GradScalerKwargs(init_scale=1024.0)]
    return Accelerator(cpu=True, mixed_precision="fp16", kwargs_handlers=handlers, **options)


def test_gradients_are_unscaled_when_their_window_closes(pool: Any) -> None:
    def gradients() -> list[float]:
        accelerator = half(gradient_accumulation_steps=2)
        model = nn.Linear(4, 1)
        model, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))
        for _ in range(2):
            with accelerator.accumulate(model):
                accelerator.backward(model(torch.ones(2, 4)).mean())
                accelerator.unscale_gradients()
        return model.weight.grad.flatten().tolist()

    # Whole numbers and powers of two: exact in fp16.
    assert pool.run(1, gradients) == [[1.0] * 4]


def test_a_step_that_was_left_out_does_not_leave_the_next_gradients_scaled(pool: Any) -> None:
    def norms() -> tuple[list[float], list[float]]:
        accelerator = half()
        model = nn.Linear(4, 1, bias=False)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
        before = model.weight.detach().clone()
        found = []
        for step in range(2):
            accelerator.backward(model(torch.ones(2, 4)).mean())
            found.append(float(accelerator.clip_grad_norm_(model.parameters(), 1e4)))
            if step:
                optimizer.step()
            optimizer.zero_grad()
        return found, (before - model.weight.detach()).flatten().tolist()

    found, moved = pool.run(1, norms)[0]
    assert found == [2.0, 2.0]
    assert moved == pytest.approx([1.0] * 4, rel=1e-6)  # the weights' own rounding in fp32


def test_an_optimizer_that_sat_out_is_unscaled_again(pool: Any) -> None:
    def norms() -> list[float]:
        accelerator = half()
        models = [nn.Linear(4, 1, bias=False) for _ in range(2)]
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
        a, b, stepped, idle = accelerator.prepare(*models, *optimizers)
        both = [*a.parameters(), *b.parameters()]
        found = []
        for _ in range(2):
            accelerator.backward((a(torch.ones(2, 4)) + b(torch.ones(2, 4))).mean())
            found.append(float(accelerator.clip_grad_norm_(both, 1e4)))
            stepped.step()
            for parameter in both:
                parameter.grad = None
        assert not idle.step_was_skipped
        return found

    assert pool.run(1, norms)[0] == [pytest.approx(8**0.5)] * 2


@pytest.mark.parametrize("overflows", [False, True])
def test_two_optimizers_of_a_window_have_one_scale(overflows: bool, pool: Any) -> None:
    """The first steps before the second's last backward: the scale grows, or backs off, after both."""

    def moved(overflows: bool) -> tuple[list[float], list[bool], float]:
        handlers = [GradScalerKwargs(init_scale=8.0, growth_interval=1)]
        accelerator = Accelerator(
            cpu=True, mixed_precision="fp16", kwargs_handlers=handlers, gradient_accumulation_steps=2
        )
        models = [nn.Linear(4, 1, bias=False) for _ in range(2)]
        starts = [model.weight.detach().clone() for model in models]
        raw = [torch.optim.SGD(model.parameters(), lr=1.0) for model in models]
        first, second, *optimizers = accelerator.prepare(*models, *raw)
        for number in range(2):
            with accelerator.accumulate(first, second):
                for model, optimizer in zip((first, second), optimizers, strict=True):
                    accelerator.backward(model(torch.ones(2, 4)).mean())
                    if overflows and number == 1 and model is first:
                        model.weight.grad[0, 0] = torch.inf
                    optimizer.step()
                    optimizer.zero_grad()
        shifts = [
            float((start - model.weight.detach()).mean()) for start, model in zip(starts, models, strict=True)
        ]
        return shifts, [each.step_was_skipped for each in optimizers], accelerator.scaler.get_scale()

    shifts, skipped, scale = pool.run(1, moved, overflows)[0]
    # The weights' own rounding in fp32; a mixed scale is off by at least a quarter.
    assert shifts == pytest.approx([0.0 if overflows else 1.0, 1.0], rel=1e-6)
    assert skipped == [overflows, False]
    assert scale == (4.0 if overflows else 16.0)
