"""Handlers reach what they configure: the process group, the gradient scaler, autocast."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn

from accel import Accelerator
from accel.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    GradScalerKwargs,
    InitProcessGroupKwargs,
    KwargsHandler,
    PreemptionKwargs,
    ProfileKwargs,
)


@dataclass(frozen=True)
class Own(KwargsHandler):
    alpha: float = 0.5


@dataclass(frozen=True)
class Gentle(GradScalerKwargs):
    init_scale: float = 1024.0


# -- which are taken -----------------------------------------------------------------------------------------

TAKEN = (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    GradScalerKwargs,
    InitProcessGroupKwargs,
    PreemptionKwargs,
    ProfileKwargs,
)


@pytest.mark.parametrize("cls", TAKEN, ids=lambda cls: cls.__name__)
def test_two_of_a_kind_are_refused(cls: type[KwargsHandler], pool: Any) -> None:
    (error,) = pool.failures(1, lambda: Accelerator(cpu=True, kwargs_handlers=[cls(), cls()]))
    assert type(error).__name__ == "ConfigError"
    assert f"kwargs_handlers[1]={cls()!r}: is the second {cls.__name__}"[:100] in str(error)


def test_a_subclass_counts_as_what_it_is_made_of(pool: Any) -> None:
    def run() -> float:
        accelerator = Accelerator(cpu=True, mixed_precision="fp16", kwargs_handlers=[Gentle()])
        assert accelerator.scaler is not None
        return accelerator.scaler.get_scale()

    assert pool.run(1, run) == [1024.0]
    (error,) = pool.failures(1, lambda: Accelerator(kwargs_handlers=[GradScalerKwargs(), Gentle()]))
    assert "is the second" in str(error)


def test_a_kind_that_nobody_knows_is_refused(pool: Any) -> None:
    (error,) = pool.failures(1, lambda: Accelerator(kwargs_handlers=[Own()]))
    assert "is not a handler that this version knows" in str(error)
    assert all(cls.__name__ in str(error) for cls in TAKEN)


# -- the process group ---------------------------------------------------------------------------------------


def test_the_timeout_is_shown_and_ends_the_wait_for_a_rank_that_is_missing(pool: Any) -> None:
    """2 seconds as asked for, and not torch's half an hour, in operations and in backward."""

    def run() -> tuple[str, str, float, str]:
        limit = InitProcessGroupKwargs(timeout=timedelta(seconds=2))
        accelerator = Accelerator(cpu=True, kwargs_handlers=[limit])
        shown = repr(accelerator.state)
        assert accelerator.state.timeout == timedelta(seconds=2)
        model = accelerator.prepare(nn.Linear(2, 2))
        if not accelerator.is_main_process:
            # Longer than the other waits; it must not end first, or its end would be what is noticed.
            time.sleep(3)
            return shown, "", 0.0, ""
        started = time.monotonic()
        try:
            accelerator.backward(model(torch.ones(1, 2)).sum())
        except RuntimeError as error:
            return shown, type(error).__name__, time.monotonic() - started, str(error)
        return shown, "nothing", 0.0, ""

    (shown, name, seconds, text), _ = pool.run(2, run)
    assert "Timeout: 0:00:02" in shown
    assert name != "nothing"
    assert 1.5 < seconds < 20
    assert "2000ms" in text or "0:00:02" in text, text


def test_an_operation_names_the_timeout_and_the_line(pool: Any) -> None:
    def run() -> str:
        limit = InitProcessGroupKwargs(timeout=timedelta(seconds=2))
        accelerator = Accelerator(cpu=True, kwargs_handlers=[limit])
        if not accelerator.is_main_process:
            time.sleep(3)
            return ""
        try:
            accelerator.gather(torch.ones(3))
        except RuntimeError as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    told = pool.run(2, run)[0]
    assert "0:00:02" in told
    assert "test_handlers.py:" in told


def test_another_timeout_in_the_same_process_is_refused(pool: Any) -> None:
    def run() -> None:
        Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=40))])
        Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=50))])

    for error in pool.failures(2, run):
        assert type(error).__name__ == "StateError"
        assert "the group applies 0:00:40, asked for 0:00:50" in str(error)


# -- the scaler ----------------------------------------------------------------------------------------------

STEPS = 3
WINDOWS = 6
OVERFLOWS = (1, 4)
"""The windows with an overflow, in their first micro-batch: the others of the window must not hide it."""
SETTINGS = {"init_scale": 2.0**12, "growth_interval": 2, "growth_factor": 4.0, "backoff_factor": 0.25}


def make_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))


def batch(window: int, step: int, rank: int) -> tuple[torch.Tensor, float]:
    generator = torch.Generator().manual_seed(1000 * window + 10 * step + rank)
    return torch.randn(4, 5, generator=generator), (
        float("inf") if window in OVERFLOWS and not step and not rank else 1.0
    )


def flat(model: nn.Module, *, gradient: bool) -> torch.Tensor:
    return torch.cat([(p.grad if gradient else p.detach()).reshape(-1) for p in model.parameters()]).clone()  # type: ignore[union-attr]


Update = tuple[torch.Tensor, torch.Tensor, float]


def by_hand(world: int) -> list[Update]:
    """Return gradients, weights and scale after each window, in plain torch on one process."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", **SETTINGS)  # type: ignore[arg-type]
    updates = []
    for window in range(WINDOWS):
        for step in range(STEPS):
            for rank in range(world):
                x, factor = batch(window, step, rank)
                with torch.autocast("cpu", torch.float16):
                    out = model(x)
                scaler.scale(out.float().square().mean() * factor / STEPS / world).backward()
        scaler.unscale_(optimizer)
        found = flat(model, gradient=True)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        updates.append((found, flat(model, gradient=False), scaler.get_scale()))
    return updates


@pytest.mark.parametrize("world", [1, 2])
def test_fp16_with_overflows_in_accumulated_windows_is_plain_torchs(world: int, pool: Any) -> None:
    """One process: bit-equal. Two: sums of halves in another order, so 1e-3 of the norm, fp16's own step."""

    def train() -> list[tuple[torch.Tensor, torch.Tensor, float, bool]]:
        accelerator = Accelerator(
            cpu=True,
            mixed_precision="fp16",
            gradient_accumulation_steps=STEPS,
            kwargs_handlers=[GradScalerKwargs(**SETTINGS)],  # type: ignore[arg-type]
        )
        model = make_model()
        model, optimizer = accelerator.prepare(
            model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        )
        assert accelerator.scaler is not None
        updates = []
        for window in range(WINDOWS):
            for step in range(STEPS):
                with accelerator.accumulate(model):
                    x, factor = batch(window, step, accelerator.process_index)
                    accelerator.backward(model(x).square().mean() * factor)
                    accelerator.unscale_gradients()
                    found = flat(model, gradient=True)
                    optimizer.step()
                    optimizer.zero_grad()
            skipped = accelerator.optimizer_step_was_skipped
            updates.append((found, flat(model, gradient=False), accelerator.scaler.get_scale(), skipped))
        return updates

    expected = by_hand(world)
    for updates in pool.run(world, train):
        assert [update[3] for update in updates] == [window in OVERFLOWS for window in range(WINDOWS)]
        assert [update[2] for update in updates] == [update[2] for update in expected]
        for number, ((found, weights, _, skipped), (want, want_weights, _)) in enumerate(
            zip(updates, expected, strict=True)
        ):
            if world == 1:
                assert torch.equal(weights, want_weights), f"window {number}"
            else:
                torch.testing.assert_close(weights, want_weights, rtol=1e-3, atol=1e-4)
            if skipped:
                assert not torch.isfinite(found).all()
            elif world == 1:
                assert torch.equal(found, want), f"window {number}"
            else:
                assert ((found - want).norm() / want.norm()).item() < 1e-3


def test_a_scaler_that_is_off_scales_nothing(pool: Any) -> None:
    def run() -> tuple[float, bool, bool, bool]:
        off = [GradScalerKwargs(enabled=False)]
        accelerator = Accelerator(cpu=True, mixed_precision="fp16", kwargs_handlers=off)
        model, plain = make_model(), make_model()
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain)]
        model, optimizer = accelerator.prepare(model, optimizers[0])
        x, _ = batch(0, 0, 0)
        accelerator.backward(model(x).square().mean())
        with torch.autocast("cpu", torch.float16):
            out = plain(x)
        out.float().square().mean().backward()
        same = torch.equal(flat(model, gradient=True), flat(plain, gradient=True))
        accelerator.clip_grad_norm_(model.parameters(), 1e9)
        optimizer.step()
        optimizers[1].step()
        moved = torch.equal(flat(model, gradient=False), flat(plain, gradient=False))
        assert accelerator.scaler is not None
        return accelerator.scaler.get_scale(), same, moved, accelerator.optimizer_step_was_skipped

    assert pool.run(1, run) == [(1.0, True, True, False)]


# -- autocast ------------------------------------------------------------------------------------------------


def test_autocast_that_is_off_leaves_the_model_in_fp32(pool: Any) -> None:
    def run() -> list[str]:
        off = [AutocastKwargs(enabled=False)]
        accelerator = Accelerator(cpu=True, mixed_precision="bf16", kwargs_handlers=off)
        inside: list[str] = []
        model = nn.Linear(2, 2)
        model.register_forward_hook(lambda _m, _i, out: inside.append(str(out.dtype)))
        model = accelerator.prepare(nn.Sequential(model))
        model(torch.ones(1, 2))
        for handler in (None, AutocastKwargs(enabled=True)):
            with accelerator.autocast(handler):
                inside.append(str((torch.ones(1, 2) @ torch.ones(2, 1)).dtype))
        return inside

    assert pool.run(1, run) == [["torch.float32", "torch.float32", "torch.bfloat16"]]
