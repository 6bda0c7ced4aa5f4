"""Data parallelism with every setting of DistributedDataParallelKwargs, against plain PyTorch.

Tolerance: float64, relative 1e-12, because sums are taken in another order.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

REL = 1e-12


class Branches(nn.Module):
    """A model with a part that is used in some micro-batches only, one that never is, and a buffer."""

    count: torch.Tensor

    def __init__(self, sometimes: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.extra, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.never = nn.Linear(2, 2)
        self.sometimes = sometimes
        self.register_buffer("count", torch.zeros(()))
        self.double()

    def forward(self, x: torch.Tensor, extra: bool = False) -> torch.Tensor:
        if self.training:
            self.count += 1
        hidden = torch.tanh(self.first(x))
        if extra:
            hidden = hidden + torch.tanh(self.extra(hidden))
        return self.last(hidden)


class Plain(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(3)
        super().__init__(nn.Linear(5, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 2))
        self.double()


def data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(count, 5, generator=generator, dtype=torch.float64),
        torch.randn(count, 2, generator=generator, dtype=torch.float64),
    )


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.shape == wanted.shape and bool((found - wanted).norm() <= REL * wanted.norm())


STEPS, ROWS = 3, 2


def reference(branched: bool, world: int, micro: int) -> list[torch.Tensor]:
    model: nn.Module = Branches() if branched else Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data(STEPS * micro * world * ROWS)
    found = []
    for step in range(STEPS):
        for part in range(micro):
            start = (step * micro + part) * world * ROWS
            rows = slice(start, start + world * ROWS)
            options = {"extra": part == 0} if branched else {}
            (nn.functional.mse_loss(model(x[rows], **options), y[rows]) / micro).backward()
        found.append(flat(model))
        optimizer.step()
        optimizer.zero_grad()
    return found


def shared(branched: bool, micro: int, settings: dict[str, Any]) -> list[torch.Tensor]:
    from accel import Accelerator
    from accel.utils import DistributedDataParallelKwargs

    accelerator = Accelerator(
        gradient_accumulation_steps=micro, kwargs_handlers=[DistributedDataParallelKwargs(**settings)]
    )
    inner: nn.Module = Branches() if branched else Plain()
    model, optimizer = accelerator.prepare(inner, torch.optim.SGD(inner.parameters(), lr=0.1))
    rank, world = accelerator.process_index, accelerator.num_processes
    x, y = data(STEPS * micro * world * ROWS)
    found = []
    for step in range(STEPS):
        for part in range(micro):
            start = ((step * micro + part) * world + rank) * ROWS
            rows = slice(start, start + ROWS)
            options = {"extra": part == 0} if branched else {}
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.mse_loss(model(x[rows], **options), y[rows]))
                if accelerator.sync_gradients:
                    found.append(flat(inner))
                optimizer.step()
                optimizer.zero_grad()
    return found


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "views": {"gradient_as_bucket_view": True},
    "small buckets": {"bucket_cap_mb": 1},
    "no buffers": {"broadcast_buffers": False},
    "unused": {"find_unused_parameters": True},
    "unused in views": {"find_unused_parameters": True, "gradient_as_bucket_view": True},
    "static": {"static_graph": True},
    "static in views": {"static_graph": True, "gradient_as_bucket_view": True},
    "checked, dim": {"check_reduction": True, "dim": 1},
}


@pytest.mark.cpu
@pytest.mark.world(2, 4)
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_gives_the_gradients_of_the_whole_batch(
    pool: Any, world: int, name: str, micro: int
) -> None:
    settings = SETTINGS[name]
    branched = settings.get("find_unused_parameters", False)
    expected = reference(branched, world, micro)
    for gradients in pool.run(world, shared, branched, micro, settings):
        for found, wanted in zip(gradients, expected, strict=True):
            assert close(found, wanted)


def late(settings: dict[str, Any], branched: bool) -> tuple[bool, bool]:
    """Return whether gradients are those of all ranks after the documented example, and local before it."""
    from accel import Accelerator
    from accel.utils import DistributedDataParallelKwargs

    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(**settings)])
    inner: nn.Module = Branches() if branched else Plain()
    model = accelerator.prepare(inner)
    rank, world = accelerator.process_index, accelerator.num_processes
    x, y = data(2 * world * ROWS)
    parts = [slice((turn * world + rank) * ROWS, (turn * world + rank + 1) * ROWS) for turn in range(2)]
    options: list[dict[str, Any]] = [{"extra": True}, {}] if branched else [{}, {}]
    for _ in range(2):  # twice, because the first backward of a container is special
        inner.zero_grad()
        with accelerator.no_sync(model):
            first, second = (
                nn.functional.mse_loss(model(x[rows], **more), y[rows])
                for rows, more in zip(parts, options, strict=True)
            )
        accelerator.backward(first)
        before = flat(inner)
        with accelerator.trigger_sync_in_backward(model):
            accelerator.backward(second)
    plain: nn.Module = Branches() if branched else Plain()
    for turn, more in enumerate(options):
        rows = slice(turn * world * ROWS, (turn + 1) * world * ROWS)
        nn.functional.mse_loss(plain(x[rows], **more), y[rows]).backward()
        if turn == 0:
            local = not close(before, flat(plain))
    return close(flat(inner), flat(plain)), local


@pytest.mark.cpu
@pytest.mark.world(2, 4)
@pytest.mark.parametrize("name", ["defaults", "views", "unused", "unused in views"])
def test_a_late_backward_averages_what_was_added_up(pool: Any, world: int, name: str) -> None:
    settings = SETTINGS[name]
    assert pool.run(world, late, settings, "unused" in name) == [(True, True)] * world


def late_without_a_backward() -> list[str]:
    from accel import Accelerator
    from accel.utils import DistributedDataParallelKwargs

    found = []
    accelerator = Accelerator()
    model = accelerator.prepare(Plain())
    try:
        with accelerator.trigger_sync_in_backward(model):
            pass
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(static_graph=True)])
    model = accelerator.prepare(Plain())
    try:
        with accelerator.trigger_sync_in_backward(model):
            pass
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
    return found


@pytest.mark.cpu
def test_a_late_synchronisation_that_cannot_be_is_told(pool: Any) -> None:
    for nothing, static in pool.run(2, late_without_a_backward):
        assert "StateError: No backward was synchronised" in nothing
        assert "CapabilityError" in static
        assert "static_graph" in static
    assert pool.run(1, trigger_alone) == [True]


def trigger_alone() -> bool:
    from accel import Accelerator

    accelerator = Accelerator()
    model = accelerator.prepare(Plain())
    with accelerator.trigger_sync_in_backward(model), nullcontext():
        accelerator.backward(model(data(2)[0]).sum())
    return model[0].weight.grad is not None


# -- local SGD ---------------------------------------------------------------------------------------


class WithBuffers(nn.Module):
    mean: torch.Tensor
    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.body = nn.Linear(5, 2)
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.seen += len(x)
        return self.body(torch.tanh(self.frozen(x)))


LOCAL_STEPS = 5


def local(every: int, micro: int, enabled: bool = True) -> dict[str, torch.Tensor]:
    from accel import Accelerator
    from accel.local_sgd import LocalSGD

    accelerator = Accelerator(gradient_accumulation_steps=micro)
    inner = WithBuffers()
    model, optimizer = accelerator.prepare(
        inner, torch.optim.SGD(inner.body.parameters(), lr=0.2, momentum=0.5)
    )
    rank, world = accelerator.process_index, accelerator.num_processes
    x, y = data(LOCAL_STEPS * micro * world * ROWS)
    with LocalSGD(accelerator=accelerator, model=model, local_sgd_steps=every, enabled=enabled) as averaging:
        for number in range(LOCAL_STEPS * micro):
            start = (number * world + rank) * ROWS
            with accelerator.accumulate(model):
                accelerator.backward(
                    nn.functional.mse_loss(model(x[start : start + ROWS]), y[start : start + ROWS])
                )
                optimizer.step()
                optimizer.zero_grad()
                averaging.step()
    assert averaging.num_steps == LOCAL_STEPS
    # Afterwards training is synchronised again.
    accelerator.backward(model(x[rank : rank + 1]).sum())
    gradients = accelerator.gather(inner.body.weight.grad[None])
    assert all(torch.equal(gradients[0], each) for each in gradients)
    return {name: value.clone() for name, value in inner.state_dict().items()}


def by_hand(world: int, every: int, micro: int) -> dict[str, torch.Tensor]:
    models = [WithBuffers() for _ in range(world)]
    optimizers = [torch.optim.SGD(m.body.parameters(), lr=0.2, momentum=0.5) for m in models]
    x, y = data(LOCAL_STEPS * micro * world * ROWS)

    def average() -> None:
        for name, value in models[0].state_dict().items():
            if value.is_floating_point():
                mean = torch.stack([m.state_dict()[name] for m in models]).mean(0)
                for model in models:
                    model.state_dict()[name].copy_(mean)

    for step in range(LOCAL_STEPS):
        for rank, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            for part in range(micro):
                start = ((step * micro + part) * world + rank) * ROWS
                rows = slice(start, start + ROWS)
                (nn.functional.mse_loss(model(x[rows]), y[rows]) / micro).backward()
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % every == 0:
            average()
    average()
    models[0](x[:1])  # the forward after the context
    return dict(models[0].state_dict())


@pytest.mark.cpu
@pytest.mark.world(2, 4)
@pytest.mark.parametrize(("every", "micro"), [(1, 1), (2, 1), (2, 3), (100, 2)])
def test_local_sgd_is_what_one_would_write_by_hand(pool: Any, world: int, every: int, micro: int) -> None:
    expected = by_hand(world, every, micro)
    results = pool.run(world, local, every, micro)
    for name in ("body.weight", "body.bias", "frozen.weight"):
        assert all(close(state[name], expected[name]) for state in results), name
    # The forward after the context saw another sample on each rank: 0.9 of the buffer is common.
    assert all(close(results[0]["mean"], expected["mean"]) for _ in results[:1])


@pytest.mark.cpu
def test_local_sgd_that_is_switched_off_or_alone_changes_nothing(pool: Any) -> None:
    plain = pool.run(2, local, 2, 2, False)[0]
    together = pool.run(2, local, 2, 2)[0]
    assert not close(plain["body.weight"], together["body.weight"])
    (alone,) = pool.run(1, local, 2, 2)
    assert close(alone["body.weight"], by_hand(1, 2, 2)["body.weight"])


def refusals() -> list[str]:
    from accel import Accelerator
    from accel.local_sgd import LocalSGD
    from accel.utils import DistributedDataParallelKwargs

    found = []

    def note(make: Any) -> None:
        try:
            make()
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")

    accelerator = Accelerator()
    model = accelerator.prepare(Plain())
    note(lambda: LocalSGD(accelerator, model, 0))
    note(lambda: LocalSGD(accelerator, Plain(), 2))

    def weighted() -> None:
        with LocalSGD(accelerator, model, 2):
            accelerator.backward(model(data(2)[0]).sum(), weight=2)

    note(weighted)

    class NoneWhole:
        name = "sharded"
        batches = accelerator._strategy.batches

    kept, accelerator._strategy = accelerator._strategy, NoneWhole()  # type: ignore[assignment]
    note(lambda: LocalSGD(accelerator, model, 2))
    note(lambda: accelerator.trigger_sync_in_backward(model))
    note(lambda: accelerator.join_uneven_inputs([model]).__enter__())
    accelerator._strategy = kept
    static = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(static_graph=True)])
    still = static.prepare(Plain())
    note(lambda: LocalSGD(static, still, 2).__enter__())
    return found


@pytest.mark.cpu
def test_what_cannot_go_its_own_way_is_refused(pool: Any) -> None:
    expected = [
        "ConfigError: LocalSGD: local_sgd_steps=0",
        "PrepareError: LocalSGD was given a Plain",
        "StateError: backward(weight=...) needs ranks that step together",
        "CapabilityError: The strategy 'sharded' cannot let ranks train alone",
        "CapabilityError: The strategy 'sharded' cannot synchronise after a forward",
        "CapabilityError: The strategy 'sharded' cannot go on without a rank",
        "CapabilityError: A model with static_graph=True cannot be trained without",
    ]
    for found in pool.run(2, refusals):
        assert len(found) == len(expected)
        for said, start in zip(found, expected, strict=True):
            assert said.startswith(start), said


# -- a window that one model left early ----------------------------------------------------------------


def left_out(kind: str) -> str:
    from accel import Accelerator

    accelerator = Accelerator(gradient_accumulation_steps=2)
    first, second = Plain(), Plain()
    one = torch.optim.SGD(first.parameters(), lr=0.1)
    both = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)
    model, other, one, both = accelerator.prepare(first, second, one, both)
    x = data(4)[0] + accelerator.process_index
    try:
        for part in range(2):
            with accelerator.accumulate(model, other):
                accelerator.backward(model(x).sum())
                if part == 0 or kind == "complete":
                    accelerator.backward(other(x).sum())
                (both if kind != "its own" else one).step()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    parameters = accelerator.gather(first[0].weight[None].detach())
    return "equal" if torch.equal(parameters[0], parameters[1]) else "different"


@pytest.mark.cpu
def test_a_model_without_a_backward_in_the_closing_micro_batch_is_told(pool: Any) -> None:
    for said in pool.run(2, left_out, "over both"):
        assert said.startswith("StateError: The optimizer would apply gradients of the model of unit")
        assert "were never averaged" in said
    assert pool.run(2, left_out, "its own") == ["equal"] * 2
    assert pool.run(2, left_out, "complete") == ["equal"] * 2


# -- communication hooks through the Accelerator -------------------------------------------------------


def hooked(hook: str, micro: int) -> tuple[bool, float]:
    """Return whether ranks have equal gradients, and how far these are from the exact ones."""
    from accel import Accelerator
    from accel.utils import DDPCommunicationHookType, DistributedDataParallelKwargs

    settings = DistributedDataParallelKwargs(comm_hook=DDPCommunicationHookType(hook))
    accelerator = Accelerator(gradient_accumulation_steps=micro, kwargs_handlers=[settings])
    inner = Plain()
    model = accelerator.prepare(inner)
    rank, world = accelerator.process_index, accelerator.num_processes
    x, y = data(micro * world * ROWS)
    for part in range(micro):
        start = (part * world + rank) * ROWS
        with accelerator.accumulate(model):
            accelerator.backward(
                nn.functional.mse_loss(
                    model(x[start : start + ROWS]), y[start : start + ROWS], reduction="sum"
                ),
                weight=2 * ROWS,
            )
    plain = Plain()
    nn.functional.mse_loss(plain(x), y).backward()
    found, wanted = flat(inner), flat(plain)
    gathered = accelerator.gather(found[None])
    equal = all(torch.equal(gathered[0], each) for each in gathered)
    return equal, float((found - wanted).norm() / wanted.norm())


@pytest.mark.cpu
@pytest.mark.world(2, 4)
@pytest.mark.parametrize("micro", [1, 3])
# Half precision has 11 bits (fp16) and 8 (bf16) in each number, and rounds again in each sum.
@pytest.mark.parametrize(("hook", "bound"), [("fp16", 2**-9), ("bf16", 2**-6)])
def test_hooks_go_with_weighted_windows(pool: Any, world: int, hook: str, bound: float, micro: int) -> None:
    for equal, error in pool.run(world, hooked, hook, micro):
        assert equal
        assert REL < error < bound
