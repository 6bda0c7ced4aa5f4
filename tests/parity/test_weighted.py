"""Weighted backward passes on 1, 2 and 4 processes against one mean over all tokens in plain PyTorch.

Tolerance: float64, relative 1e-12. Sums are taken in another order, and totals travel with 51 bits; a
mean of means instead of the mean is off by per cent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from accel_core.errors import CollectiveError, DataError, StateError

REL = 1e-12
WIDTH = 5


@dataclass(frozen=True)
class Plan:
    """Tokens per rank and micro-batch: ``counts[micro_batch][rank]``."""

    counts: tuple[tuple[int, ...], ...]
    steps: int
    reduction: str = "sum"
    clip: float | None = None
    kind: str = "int"
    precision: str = "no"
    sync_each_batch: bool = False

    @property
    def world(self) -> int:
        return len(self.counts[0])


def make_model() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def tokens(plan: Plan, number: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * number + rank)
    count = plan.counts[number][rank]
    return (
        torch.randn(count, WIDTH, dtype=torch.float64, generator=generator),
        torch.randint(3, (count,), generator=generator),
    )


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).clone()


def reference(plan: Plan) -> list[torch.Tensor]:
    """Return the gradient of each update, taken of one mean over all tokens of the window."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    found = []
    for start in range(0, len(plan.counts), plan.steps):
        numbers = range(start, min(start + plan.steps, len(plan.counts)))
        pairs = [tokens(plan, number, rank) for number in numbers for rank in range(plan.world)]
        inputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        nn.functional.cross_entropy(model(inputs), targets).backward()
        if plan.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        found.append(gradients(model))
        optimizer.step()
        optimizer.zero_grad()
    return found


def weight_of(plan: Plan, targets: torch.Tensor) -> Any:
    count = torch.ones_like(targets).sum()
    return {"int": int(count), "tensor": count, "float": float(count)}[plan.kind]


def train(plan: Plan) -> list[torch.Tensor]:
    from accel import Accelerator
    from accel.utils import GradientAccumulationPlugin

    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=plan.steps, sync_each_batch=plan.sync_each_batch
        ),
    )
    model = make_model()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9))
    found = []
    last = len(plan.counts) - 1
    for number in range(len(plan.counts)):
        inputs, targets = tokens(plan, number, accelerator.process_index)
        if number == last - last % plan.steps:
            # No loader tells that the data ends, so the last window is made as long as it will be.
            accelerator.gradient_accumulation_steps = last % plan.steps + 1
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(inputs), targets, reduction=plan.reduction)
            accelerator.backward(loss, weight=weight_of(plan, targets), reduction=plan.reduction)
            if accelerator.sync_gradients:
                if plan.clip is not None:
                    accelerator.clip_grad_norm_(model.parameters(), plan.clip)
                found.append(gradients(model))
            optimizer.step()
            optimizer.zero_grad()
    return found


def check(plan: Plan, pool: Any) -> None:
    expected = reference(plan)
    for rank, found in enumerate(pool.run(plan.world, train, plan)):
        assert len(found) == len(expected)
        for update, (gradient, want) in enumerate(zip(found, expected, strict=True)):
            error = ((gradient - want).norm() / want.norm()).item()
            assert error < REL, f"rank {rank}, update {update}: off by {error:.1e}"


PLANS = [
    Plan(((3,), (11,), (1,), (6,)), steps=1),
    Plan(((3,), (11,), (1,), (6,)), steps=4),
    Plan(((3,), (11,), (1,), (6,), (9,), (2,)), steps=4, reduction="mean"),
    Plan(((3, 8), (11, 1)), steps=1, reduction="mean"),
    Plan(((3, 8), (11, 1), (2, 5), (7, 7), (1, 9)), steps=3),
    Plan(((3, 8), (11, 1), (2, 5), (7, 7), (1, 9)), steps=3, reduction="mean", clip=0.05),
    Plan(((3, 8), (11, 1), (2, 5), (7, 7)), steps=2, sync_each_batch=True),
    Plan(((3, 8), (11, 1), (2, 5), (7, 7)), steps=2, kind="tensor", clip=0.05),
    Plan(((3, 0), (0, 1), (2, 0), (0, 7)), steps=2, kind="float"),
    Plan(((3, 8, 1, 14), (11, 1, 2, 2), (2, 5, 6, 1)), steps=2),
    Plan(((3, 8, 1, 14), (11, 1, 2, 2), (2, 5, 6, 1), (1, 1, 1, 1)), steps=4, reduction="mean"),
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_gradients_are_those_of_one_mean_over_all_tokens(plan: Plan, pool: Any) -> None:
    check(plan, pool)


@st.composite
def plans(draw: Any) -> Plan:
    world = draw(st.sampled_from([1, 2]))
    steps = draw(st.integers(1, 4))
    rows = draw(st.lists(st.tuples(*[st.integers(1, 20)] * world), min_size=1, max_size=7))
    return Plan(tuple(rows), steps, reduction=draw(st.sampled_from(["sum", "mean"])))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans())
def test_any_spread_of_tokens(plan: Plan, pool: Any) -> None:
    check(plan, pool)


def ragged(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return ``count`` sequences of 1 to 9 tokens; a label of -100 is padding."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for number in range(count):
        inputs = torch.randn(9, WIDTH, dtype=torch.float64, generator=generator)
        labels = torch.randint(3, (9,), generator=generator)
        labels[1 + number * 4 % 9 :] = -100
        found.append((inputs, labels))
    return found


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_loader_with_ragged_sequences_and_a_short_last_window(
    world: int, streamed: bool, pool: Any
) -> None:
    rounds, steps, size = 5, 2, 2

    def run() -> list[torch.Tensor]:
        from torch.utils.data import DataLoader, IterableDataset

        from accel import Accelerator

        class Stream(IterableDataset[Any]):
            def __iter__(self) -> Any:
                return iter(data)

        data = ragged(rounds * size * world)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=steps)
        model = make_model()
        model, optimizer, loader = accelerator.prepare(
            model,
            torch.optim.SGD(model.parameters(), lr=0.3),
            DataLoader(Stream() if streamed else data, batch_size=size),  # type: ignore[arg-type]
        )
        found = []
        for inputs, labels in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(
                    model(inputs).flatten(0, 1), labels.flatten(), reduction="sum"
                )
                accelerator.backward(loss, weight=int((labels != -100).sum()))
                if accelerator.sync_gradients:
                    found.append(gradients(model))
                optimizer.step()
                optimizer.zero_grad()
        return found

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    data = ragged(rounds * size * world)
    expected = []
    for start in range(0, len(data), steps * size * world):
        inputs, labels = (
            torch.stack(x) for x in zip(*data[start : start + steps * size * world], strict=True)
        )
        nn.functional.cross_entropy(model(inputs).flatten(0, 1), labels.flatten()).backward()
        expected.append(gradients(model))
        optimizer.step()
        optimizer.zero_grad()

    for found in pool.run(world, run):
        assert len(found) == len(expected) == 3
        for gradient, want in zip(found, expected, strict=True):
            assert ((gradient - want).norm() / want.norm()).item() < REL


@pytest.mark.parametrize("world", [1, 2])
def test_two_models_share_the_weight_of_a_micro_batch(world: int, pool: Any) -> None:
    counts = ((3, 8), (11, 1), (2, 5))
    plan = Plan(tuple(row[:world] for row in counts), steps=3)

    def joint() -> list[torch.Tensor]:
        from accel import Accelerator

        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=plan.steps)
        first, second = accelerator.prepare(make_model(), make_model())
        for number in range(len(plan.counts)):
            inputs, targets = tokens(plan, number, accelerator.process_index)
            with accelerator.accumulate(first, second):
                for model, weight in ((first, 1.0), (second, 0.25)):
                    loss = weight * nn.functional.cross_entropy(model(inputs), targets, reduction="sum")
                    accelerator.backward(loss, weight=len(targets))
        return [gradients(first), gradients(second)]

    want = reference(plan)[0]
    for first, second in pool.run(world, joint):
        assert ((first - want).norm() / want.norm()).item() < REL
        assert ((second - 0.25 * want).norm() / want.norm()).item() < REL


@pytest.mark.parametrize("world", [1, 2])
def test_an_injected_overflow_with_the_scaler(world: int, pool: Any) -> None:
    """fp16 autocast is left out by computing in float64 outside of it: what is tested is scale and skip."""

    def run() -> list[tuple[torch.Tensor, bool, float]]:
        from accel import Accelerator
        from accel.utils import AutocastKwargs, GradScalerKwargs

        accelerator = Accelerator(
            cpu=True,
            mixed_precision="fp16",
            gradient_accumulation_steps=2,
            kwargs_handlers=[AutocastKwargs(enabled=False), GradScalerKwargs(init_scale=1024.0)],
        )
        model = nn.Linear(WIDTH, 1).double()
        nn.init.constant_(model.weight, 0.1)
        nn.init.constant_(model.bias, 0.2)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        found = []
        for number in range(6):
            count = 1 + number + 2 * accelerator.process_index
            inputs = torch.full((count, WIDTH), 1.0 + number, dtype=torch.float64)
            with accelerator.accumulate(model):
                loss = model(inputs).double().square().sum()
                if number == 2:
                    loss = loss * float("inf")
                accelerator.backward(loss, weight=count)
                if accelerator.sync_gradients:
                    accelerator.unscale_gradients()
                    found.append((gradients(model), False, accelerator.scaler.get_scale()))
                optimizer.step()
                if accelerator.sync_gradients:
                    found[-1] = (found[-1][0], optimizer.step_was_skipped, found[-1][2])
                optimizer.zero_grad()
        return found

    results = pool.run(world, run)
    for found in results:
        assert [skipped for _, skipped, _ in found] == [False, True, False]
        assert [scale for _, _, scale in found] == [1024.0, 1024.0, 512.0]
    # The first and the third window by hand; the second was skipped, so the weights moved once.
    model = nn.Linear(WIDTH, 1).double()
    nn.init.constant_(model.weight, 0.1)
    nn.init.constant_(model.bias, 0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for window, numbers in ((0, (0, 1)), (2, (4, 5))):
        counts = [(number, 1 + number + 2 * rank) for number in numbers for rank in range(world)]
        inputs = torch.cat([torch.full((n, WIDTH), 1.0 + k, dtype=torch.float64) for k, n in counts])
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        want = gradients(model)
        for found in results:
            assert ((found[window][0] - want).norm() / want.norm()).item() < REL
        optimizer.step()


# -- bad input -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    from accel_state import process

    yield
    process.reset()


def one(steps: int = 1) -> tuple[Any, nn.Module]:
    from accel import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=steps)
    return accelerator, accelerator.prepare(make_model())


def loss_of(model: nn.Module, count: int = 2) -> torch.Tensor:
    result: torch.Tensor = model(torch.ones(count, WIDTH, dtype=torch.float64)).square().sum()
    return result


@pytest.mark.parametrize("weight", [-1, -0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_weight_that_counts_nothing(weight: float, steps: int) -> None:
    accelerator, model = one(steps=steps)
    with (
        accelerator.accumulate(model),
        pytest.raises(DataError, match=f"weight={weight!r}".replace(".", r"\.")),
    ):
        accelerator.backward(loss_of(model), weight=weight)


@pytest.mark.parametrize("weight", [True, "3", None.__class__, [3], torch.ones(2), 1j])
def test_a_weight_that_is_no_number(weight: Any) -> None:
    accelerator, model = one()
    with pytest.raises(TypeError, match="weight"):
        accelerator.backward(loss_of(model), weight=weight)


def test_a_total_of_zero() -> None:
    accelerator, model = one()
    with pytest.raises(DataError, match="add up to 0"):
        accelerator.backward(loss_of(model), weight=0)
    accelerator, model = one(steps=2)
    with accelerator.accumulate(model):
        accelerator.backward(0 * loss_of(model), weight=0)
    with pytest.raises(DataError, match="add up to 0"), accelerator.accumulate(model):
        accelerator.backward(0 * loss_of(model), weight=0)


def test_a_mean_over_nothing() -> None:
    accelerator, model = one()
    with pytest.raises(DataError, match="mean of a loss over nothing"):
        accelerator.backward(loss_of(model), weight=0, reduction="mean")


def test_an_unknown_reduction_and_one_without_a_weight() -> None:
    from accel_core.errors import UnknownNameError

    accelerator, model = one()
    with pytest.raises(UnknownNameError, match="'mean'"):
        accelerator.backward(loss_of(model), weight=2, reduction="means")
    with pytest.raises(StateError, match="without a weight"):
        accelerator.backward(loss_of(model), reduction="mean")


@pytest.mark.parametrize("first", [{}, {"weight": 2}])
def test_a_window_that_mixes(first: dict[str, int]) -> None:
    accelerator, model = one(steps=2)
    second = {} if first else {"weight": 2}
    with accelerator.accumulate(model):
        accelerator.backward(loss_of(model), **first)
    with pytest.raises(StateError, match=r"window whose other backwards"), accelerator.accumulate(model):
        accelerator.backward(loss_of(model), **second)


@pytest.mark.parametrize("extra", [{}, {"weight": 2}])
def test_two_backwards_in_one_micro_batch(extra: dict[str, int]) -> None:
    accelerator, model = one(steps=2)
    with accelerator.accumulate(model):
        accelerator.backward(loss_of(model), **extra)
        with pytest.raises(StateError, match="2 times in one accumulate"):
            accelerator.backward(loss_of(model), **extra)


def test_two_backwards_that_are_meant() -> None:
    accelerator, model = one(steps=2)
    for _ in range(2):
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model), weight=2)
            accelerator.backward(3 * loss_of(model), weight=2, add=True)
    want = make_model()
    (4 * loss_of(want) / 2).backward()
    assert torch.allclose(gradients(model), gradients(want), rtol=REL, atol=0)


def test_two_weights_in_one_micro_batch() -> None:
    accelerator, model = one(steps=2)
    with accelerator.accumulate(model):
        accelerator.backward(loss_of(model), weight=2)
        with pytest.raises(StateError, match="two weights, 2 and 3"):
            accelerator.backward(loss_of(model), weight=3, add=True)


def test_a_closing_micro_batch_without_a_backward() -> None:
    accelerator, model = one(steps=2)
    optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.1))
    with accelerator.accumulate(model):
        accelerator.backward(loss_of(model), weight=2)
    with pytest.raises(StateError, match="still sums"), accelerator.accumulate(model):
        pass
    with accelerator.accumulate(model):
        accelerator.backward(loss_of(model), weight=2)
    with pytest.raises(StateError, match="still sums"), accelerator.accumulate(model):
        optimizer.step()


def test_types_that_differ_between_the_ranks(pool: Any) -> None:
    def differ() -> str:
        accelerator, model = one(steps=2)
        weight: Any = 2 if accelerator.is_main_process else 2.0
        with accelerator.accumulate(model):
            try:
                accelerator.backward(loss_of(model), weight=weight)
            except CollectiveError as error:
                return str(error)
        return "nothing was raised"

    for text in pool.run(2, differ):
        assert "rank 0: a whole number, rank 1: a fraction" in text


@pytest.mark.parametrize("steps", [1, 2])
def test_a_bad_weight_on_one_rank_is_named_on_the_others(steps: int, pool: Any) -> None:
    def bad() -> str:
        accelerator, model = one(steps=steps)
        try:
            for number in range(steps):
                last = number == steps - 1 and accelerator.process_index == 1
                with accelerator.accumulate(model):
                    accelerator.backward(loss_of(model), weight=-3 if last else 2)
        except (CollectiveError, DataError) as error:
            return str(error)
        return "nothing was raised"

    other, own = pool.run(2, bad)
    assert "rank 1 gave backward() a weight that is no count" in other
    assert "weight=-3" in own


def test_a_rank_without_weights_times_out_with_the_cause(pool: Any) -> None:
    def alone() -> str:
        from datetime import timedelta

        from accel import Accelerator
        from accel.utils import InitProcessGroupKwargs

        handler = InitProcessGroupKwargs(backend="gloo", timeout=timedelta(seconds=2))
        accelerator = Accelerator(cpu=True, kwargs_handlers=[handler])
        model = accelerator.prepare(make_model())
        try:
            accelerator.backward(loss_of(model), **({"weight": 2} if accelerator.is_main_process else {}))
        except RuntimeError as error:
            return str(error)
        return "went on"

    first, _ = pool.run(2, alone, timeout=60)
    assert "could not add up the weights" in first
    assert "on every rank" in first


# -- one batch of 32, cut in every way -------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("world", "steps"), [(1, 1), (1, 4), (1, 32), (2, 1), (2, 4), (2, 16), (4, 1), (4, 2), (4, 8)]
)
def test_a_batch_of_32_however_it_is_cut(world: int, steps: int, weighted: bool, pool: Any) -> None:
    size = 32 // (world * steps)
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randn(32, WIDTH, dtype=torch.float64, generator=generator)
    targets = torch.randint(3, (32,), generator=generator)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        from torch.utils.data import DataLoader, TensorDataset

        from accel import Accelerator

        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=steps)
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = DataLoader(TensorDataset(inputs, targets), batch_size=size)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        given = {"weight": size, "reduction": "mean"} if weighted else {}
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(x), y), **given)
                assert accelerator.sync_gradients == (accelerator.gradient_state.end_of_dataloader)
                optimizer.step()
        return gradients(model), torch.cat([p.detach().flatten() for p in model.parameters()])

    model = make_model()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    want = gradients(model)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    for gradient, parameters in pool.run(world, run):
        assert ((gradient - want).norm() / want.norm()).item() < REL
        assert ((parameters - after).norm() / after.norm()).item() < REL
