"""Ranks with unequally many batches, joined, against one process that knows them all.

Tolerance: float64, relative 1e-12, because sums are taken in another order.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

REL = 1e-12
EPOCHS = 2


class Net(nn.Module):
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
        self.register_buffer("count", torch.zeros(()))
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.count += 1
        return self.body(x)


def data(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(4)
    return TensorDataset(
        torch.randn(count, 4, generator=generator, dtype=torch.float64),
        torch.randn(count, 2, generator=generator, dtype=torch.float64),
    )


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.shape == wanted.shape and bool((found - wanted).norm() <= REL * wanted.norm())


def train(samples: int, micro: int, options: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    from accel import Accelerator
    from accel.utils import DistributedDataParallelKwargs

    accelerator = Accelerator(
        gradient_accumulation_steps=micro,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[DistributedDataParallelKwargs(**settings)],
    )
    inner = Net()
    optimizer = torch.optim.Adam(inner.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    loader = DataLoader(data(samples), batch_size=2)
    model, optimizer, scheduler, loader = accelerator.prepare(inner, optimizer, scheduler, loader)
    batches = 0
    for _ in range(EPOCHS):
        with accelerator.join_uneven_inputs([model], even_batches=False, **options):
            for x, y in loader:
                batches += 1
                with accelerator.accumulate(model):
                    accelerator.backward(nn.functional.mse_loss(model(x), y))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 0.5)
                    optimizer.step()
                    if accelerator.sync_gradients:
                        scheduler.step()
                    optimizer.zero_grad()
    # Nothing of the context is left: a forward of one rank alone does not wait, gradients are means again.
    if accelerator.is_main_process:
        with torch.no_grad():
            model.eval()
            model(x)
            model.train()
    own = torch.full((1, 4), float(accelerator.process_index), dtype=torch.float64)
    # Outside of accumulate a loss is one of ``micro``, as documented.
    accelerator.backward(model(own).sum() * micro)
    probe = [p.grad.clone() for p in inner.parameters()]
    return {
        "batches": batches,
        "even": loader.batch_sampler.even_batches,
        "parameters": [p.detach().clone() for p in inner.parameters()],
        "moments": [optimizer.state[p]["exp_avg"].clone() for p in inner.parameters()],
        "rate": scheduler.get_last_lr()[0],
        "probe": probe,
    }


def reference(world: int, samples: int, micro: int, by_all: bool) -> dict[str, Any]:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    x, y = data(samples).tensors
    rounds = [range(at, min(at + 2 * world, samples)) for at in range(0, samples, 2 * world)]
    for _ in range(EPOCHS):
        for first in range(0, len(rounds), micro):
            window = rounds[first : first + micro]
            for rows in window:
                parts = [rows[at : at + 2] for at in range(0, len(rows), 2)]
                share = (world if by_all else len(parts)) * len(window)
                for part in parts:
                    (nn.functional.mse_loss(model(x[list(part)]), y[list(part)]) / share).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    state = {
        "parameters": [p.detach().clone() for p in model.parameters()],
        "moments": [optimizer.state[p]["exp_avg"].clone() for p in model.parameters()],
        "rate": scheduler.get_last_lr()[0],
    }
    for rank in range(world):
        (model(torch.full((1, 4), float(rank), dtype=torch.float64)).sum() / world).backward()
    return {**state, "probe": [p.grad for p in model.parameters()]}


# Batches per rank on 2: (4, 3), (3, 3), (1, 0), on 4: (2, 2, 2, 1), (2, 2, 1, 1), (1, 0, 0, 0).
SAMPLES = {"one short": (14, 14), "even": (12, 16), "the last is small": (11, 11), "nearly none": (2, 2)}


@pytest.mark.cpu
@pytest.mark.world(2, 4)
@pytest.mark.parametrize("micro", [1, 2, 3])
@pytest.mark.parametrize("shape", SAMPLES)
def test_joined_ranks_train_as_one_process_would(pool: Any, world: int, shape: str, micro: int) -> None:
    samples = SAMPLES[shape][world // 4]
    expected = reference(world, samples, micro, by_all=False)
    results = pool.run(world, train, samples, micro, {}, {})
    counts = [result["batches"] for result in results]
    assert sum(counts) == EPOCHS * -(-samples // 2)
    assert (min(counts) < max(counts)) == (shape != "even" and -(-samples // 2) % world != 0)
    compare(results, expected)


def compare(results: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    for result in results:
        assert result["even"] is True
        assert result["rate"] == pytest.approx(expected["rate"], rel=REL)
        for kind in ("parameters", "moments", "probe"):
            for found, wanted in zip(result[kind], expected[kind], strict=True):
                assert close(found, wanted), kind


@pytest.mark.cpu
@pytest.mark.world(2, 4)
@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_as_bucket_view": True},
        {"find_unused_parameters": True},
        {"broadcast_buffers": False, "bucket_cap_mb": 1},
    ],
    ids=["views", "unused", "no buffers"],
)
def test_joining_goes_with_other_settings(pool: Any, world: int, settings: dict[str, Any]) -> None:
    compare(pool.run(world, train, 14, 2, {}, settings), reference(world, 14, 2, by_all=False))


@pytest.mark.cpu
def test_gradients_can_be_divided_by_all_ranks_as_torch_does(pool: Any) -> None:
    options = {"divide_by_initial_world_size": True}
    compare(pool.run(2, train, 14, 1, options, {}), reference(2, 14, 1, by_all=True))


def lonely() -> tuple[int, bool]:
    from accel import Accelerator

    accelerator = Accelerator()
    model, loader = accelerator.prepare(Net(), DataLoader(data(6), batch_size=2))
    with accelerator.join_uneven_inputs([model], even_batches=False):
        count = sum(1 for _ in loader)
        gathered = accelerator.gather(torch.ones(1))
    return count, gathered.shape == (1,)


@pytest.mark.cpu
def test_on_one_process_nothing_changes(pool: Any) -> None:
    assert pool.run(1, lonely) == [(3, True)]


def evaluate() -> tuple[int, float]:
    from accel import Accelerator

    accelerator = Accelerator()
    model, loader = accelerator.prepare(Net(), DataLoader(data(14), batch_size=2))
    model.eval()
    losses = []
    with accelerator.join_uneven_inputs([model], even_batches=False), torch.no_grad():
        losses.extend(nn.functional.mse_loss(model(x), y, reduction="sum") for x, y in loader)
    total = accelerator.reduce(torch.stack(losses).sum())
    return len(losses), float(total)


@pytest.mark.cpu
@pytest.mark.world(2, 4)
def test_evaluation_on_uneven_inputs(pool: Any, world: int) -> None:
    model = Net().eval().requires_grad_(False)
    x, y = data(14).tensors
    expected = float(nn.functional.mse_loss(model(x), y, reduction="sum"))
    results = pool.run(world, evaluate)
    assert sum(count for count, _ in results) == 7
    for _, total in results:
        assert total == pytest.approx(expected, rel=REL)


# -- bad input -----------------------------------------------------------------------------------------


WITHOUT_ARGUMENTS = ("wait_for_everyone", "main_process_first", "check_trigger")


def inside(kind: str) -> str:
    """Do one wrong thing on every rank; return what was said."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    from accel import Accelerator
    from accel.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

    made: dict[str, Any] = {}
    if kind in {"hook", "static"}:
        setting = {"comm_hook": "fp16"} if kind == "hook" else {"static_graph": True}
        made["kwargs_handlers"] = [DistributedDataParallelKwargs(**setting)]
    if kind == "window goes on":
        made["gradient_accumulation_plugin"] = GradientAccumulationPlugin(2, sync_with_dataloader=False)
    if kind in {"open", "broken off"}:
        made["gradient_accumulation_steps"] = 2
    accelerator = Accelerator(**made)
    inner = Net()
    made_of = torch.optim.SGD(inner.parameters(), lr=0.1)
    if kind.startswith("divided"):
        made_of = ZeroRedundancyOptimizer(inner.parameters(), torch.optim.SGD, lr=0.1)
    model, other, _, loader = accelerator.prepare(inner, Net(), made_of, DataLoader(data(16), batch_size=2))
    if kind == "synchronised norm":
        inner.norm = nn.SyncBatchNorm(2)
    others: dict[str, list[Any]] = {
        "two": [model, other],
        "divided, joined": [model, made_of],
        "a list": [[model]],
        "a bare model": [Net()],
    }
    joinables = others.get(kind, [model])
    even: Any = "no" if kind == "text" else False
    try:
        if kind == "open":
            with accelerator.accumulate(model):
                accelerator.backward(model(data(2).tensors[0]).sum())
        with accelerator.join_uneven_inputs(joinables, even_batches=even):
            for x, _ in loader:
                loss = model(x).sum()
                if kind == "two forwards":
                    loss = loss + model(x).sum()
                if kind == "weight":
                    accelerator.backward(loss, weight=2)
                if kind == "broken off":
                    with accelerator.accumulate(model):
                        accelerator.backward(loss)
                    break
                accelerator.backward(loss)
                if kind in WITHOUT_ARGUMENTS:
                    getattr(accelerator, kind)()
                if kind in {"gather", "reduce", "gather_for_metrics"}:
                    getattr(accelerator, kind)(loss.detach())
                if kind == "second loop":
                    next(iter(loader))
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    else:
        said = "nothing"
    # What was refused can be called again, and nothing hangs afterwards.
    return said if float(accelerator.reduce(torch.ones(()))) == 2 else "gone"


TOLD = {
    "hook": "CapabilityError: Uneven inputs cannot be joined for a model with comm_hook",
    "divided": "CapabilityError: Uneven inputs cannot be joined with a ZeroRedundancyOptimizer",
    "divided, joined": "CapabilityError: Uneven inputs cannot be joined with a ZeroRedundancyOptimizer",
    "synchronised norm": "CapabilityError: Uneven inputs cannot be joined for a model with SyncBatchNorm",
    "static": "CapabilityError: Uneven inputs cannot be joined for a model with static_graph=True",
    "two": "CapabilityError: Uneven inputs can be joined for one shared model at a time, not for 2",
    "a list": "PrepareError: A list cannot be joined",
    "a bare model": "PrepareError: A Net cannot be joined",
    "text": "ConfigError: join_uneven_inputs: even_batches='no': must be True, False or None",
    "window goes on": "ConfigError: join_uneven_inputs: sync_with_dataloader=False",
    "open": "StateError: join_uneven_inputs was entered inside of an accumulation window",
    "broken off": "StateError: join_uneven_inputs ended inside of an accumulation window",
    "weight": "StateError: backward(weight=...) needs ranks that step together",
    "two forwards": "StateError: A second forward came before the backward of the first",
    "second loop": "StateError: A loop over a prepared loader began inside of join_uneven_inputs",
    "gather": "CollectiveError: gather was called inside of join_uneven_inputs",
    "reduce": "CollectiveError: reduce was called inside of join_uneven_inputs",
    "gather_for_metrics": "CollectiveError: gather_for_metrics was called inside of join_uneven_inputs",
    **{
        name: f"CollectiveError: {name} was called inside of join_uneven_inputs" for name in WITHOUT_ARGUMENTS
    },
}


@pytest.mark.cpu
@pytest.mark.parametrize("kind", TOLD)
def test_what_would_hang_is_refused(pool: Any, kind: str) -> None:
    for said in pool.run(2, inside, kind):
        assert said.startswith(TOLD[kind]), said


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(data(8))


def streams() -> tuple[int, list[str]]:
    from accel import Accelerator
    from accel_core import logging

    accelerator = Accelerator()
    model, loader = accelerator.prepare(Net(), DataLoader(Stream(), batch_size=2))
    said: list[str] = []
    import accel.uneven_api as room

    room.logger = type("Log", (), {"warning": staticmethod(lambda text, *more: said.append(text % more))})
    try:
        with accelerator.join_uneven_inputs([model], even_batches=False):
            count = 0
            for x, y in loader:
                accelerator.backward(nn.functional.mse_loss(model(x), y))
                count += 1
    finally:
        room.logger = logging.get_logger(room.__name__)
    return count, said


@pytest.mark.cpu
def test_loaders_that_cannot_be_changed_are_named(pool: Any) -> None:
    for count, (said,) in pool.run(2, streams):
        assert count == 2
        assert "even_batches=False has no effect on loaders of iterable datasets" in said


def filters() -> bool:
    from accel import Accelerator

    accelerator = Accelerator()
    model, loader = accelerator.prepare(Net(), DataLoader(data(6), batch_size=2))
    before = list(warnings.filters)
    with accelerator.join_uneven_inputs([model], even_batches=False):
        for x, y in loader:
            accelerator.backward(nn.functional.mse_loss(model(x), y))
    return warnings.filters == before


@pytest.mark.cpu
def test_the_filters_of_warnings_stay_as_they_were(pool: Any) -> None:
    assert pool.run(2, filters) == [True, True]


@pytest.mark.cpu
@pytest.mark.world(2, 4)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_forward_without_gradients_comes_before_buckets_are_rebuilt(
    pool: Any, world: int, mode: Any
) -> None:
    """Ranks that end after one batch rebuild buckets while the others evaluate: both waited for ever."""

    def run() -> list[torch.Tensor]:
        from accel import Accelerator

        accelerator = Accelerator(cpu=True)
        model = accelerator.prepare(Net())
        optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.1))
        rank = accelerator.process_index
        with accelerator.join_uneven_inputs([model]):
            for number in range(3 if rank == 0 else 1):
                inputs = torch.full((2, 4), 1.0 + rank + number, dtype=torch.float64)
                if number:
                    with mode():
                        model(inputs)
                accelerator.backward(model(inputs).square().mean())
                optimizer.step()
                optimizer.zero_grad()
        accelerator.backward(model(inputs).sum())
        return [parameter.detach().clone() for parameter in accelerator.unwrap_model(model).parameters()]

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number in range(3):
        ranks = range(world) if number == 0 else range(1)
        for rank in ranks:
            inputs = torch.full((2, 4), 1.0 + rank + number, dtype=torch.float64)
            (model(inputs).square().mean() / len(ranks)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for found in pool.run(world, run):
        for parameter, wanted in zip(found, model.parameters(), strict=True):
            assert close(parameter, wanted.detach())
