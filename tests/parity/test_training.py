"""Loss and gradients of accel on 1, 2 and 4 processes against plain PyTorch on the same global batch.

Tolerance: float64, relative 1e-12. The sums are taken in another order (per rank, per micro-batch), so
the last few of 52 bits may differ; a wrong divisor or a lost micro-batch is off by per cent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

REL = 1e-12
PER_RANK = 4


@dataclass(frozen=True)
class Case:
    world: int
    steps: int
    rounds: int
    """Global batches in the data; the last window is short when ``steps`` does not divide it."""
    style: str = "map"
    clip: float | None = None
    frozen: bool = False


def make_model(frozen: bool) -> nn.Module:
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 2)).double()
    if frozen:
        model[2].requires_grad_(False)
    return model


def make_data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    inputs = torch.randn(count, 6, dtype=torch.float64, generator=generator)
    targets = torch.randn(count, 2, dtype=torch.float64, generator=generator)
    return inputs, targets


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).clone()


class Stream(IterableDataset[Any]):
    """The same samples without a length."""

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.pairs = list(zip(inputs, targets, strict=True))

    def __iter__(self) -> Any:
        return iter(self.pairs)


def reference(case: Case) -> list[tuple[float, torch.Tensor]]:
    """Train in plain PyTorch, one big batch per window; return the loss and gradient of each update."""
    model = make_model(case.frozen)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3, momentum=0.9)
    size = case.world * PER_RANK
    inputs, targets = make_data(case.rounds * size)
    updates = []
    for start in range(0, len(inputs), size * case.steps):
        window = slice(start, start + size * case.steps)
        loss = nn.functional.mse_loss(model(inputs[window]), targets[window])
        loss.backward()
        if case.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), case.clip)
        updates.append((loss.item(), gradients(model)))
        optimizer.step()
        optimizer.zero_grad()
    return updates


def train(case: Case) -> list[tuple[float, torch.Tensor]]:
    """Train through accel on this rank; return the global loss and the gradient of each update."""
    from accel import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=case.steps)
    model = make_model(case.frozen)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3, momentum=0.9)
    inputs, targets = make_data(case.rounds * case.world * PER_RANK)
    data = TensorDataset(inputs, targets) if case.style == "map" else Stream(inputs, targets)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=PER_RANK))
    updates, losses = [], []
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(x), y)
            accelerator.backward(loss)
            losses.append(accelerator.reduce(loss.detach(), reduction="mean").item())
            if accelerator.sync_gradients:
                if case.clip is not None:
                    accelerator.clip_grad_norm_(model.parameters(), case.clip)
                updates.append((sum(losses) / len(losses), gradients(model)))
                losses = []
            optimizer.step()
            optimizer.zero_grad()
    return updates


CASES = [
    *(Case(world=world, steps=1, rounds=3) for world in (1, 2, 4)),
    *(Case(world=world, steps=4, rounds=8) for world in (1, 2, 4)),
    # The last window has 2 of 4 micro-batches: dividing by 4 would halve its gradient.
    *(Case(world=world, steps=4, rounds=6) for world in (1, 2, 4)),
    # Without a length nobody knows that the last window is short before its last batch.
    *(Case(world=world, steps=4, rounds=6, style="stream") for world in (1, 2, 4)),
    *(Case(world=world, steps=3, rounds=5, clip=0.05) for world in (1, 2)),
    *(Case(world=world, steps=3, rounds=5, style="stream", clip=0.05) for world in (1, 2)),
    Case(world=2, steps=2, rounds=3, frozen=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradients_are_those_of_the_big_batch(case: Case, pool: Any) -> None:
    expected = reference(case)
    for rank, updates in enumerate(pool.run(case.world, train, case)):
        assert len(updates) == len(expected), f"rank {rank} took another number of steps"
        for (loss, gradient), (want_loss, want_gradient) in zip(updates, expected, strict=True):
            assert loss == pytest.approx(want_loss, rel=REL)
            error = (gradient - want_gradient).norm() / want_gradient.norm()
            assert error.item() < REL, f"rank {rank}: gradient is off by {error.item():.1e}"


def test_ranks_end_with_equal_weights(pool: Any) -> None:
    def weights() -> torch.Tensor:
        from accel import Accelerator

        accelerator = Accelerator(cpu=True)
        # Ranks start from different weights on purpose: wrapping must make them equal.
        torch.manual_seed(accelerator.process_index)
        model = nn.Linear(6, 2).double()
        optimizer = torch.optim.AdamW(model.parameters())
        inputs, targets = make_data(32)
        loader = DataLoader(TensorDataset(inputs, targets), batch_size=4, shuffle=True)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        for x, y in loader:
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
        return accelerator.unwrap_model(model).weight.detach().clone()

    results = pool.run(4, weights)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("world", [1, 2])
def test_two_models_in_one_window(world: int, pool: Any) -> None:
    """A short window over two models with two losses, stepped by one optimizer over both."""

    def joint() -> torch.Tensor:
        from accel import Accelerator

        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
        first, second = make_model(False), make_model(False)
        optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)
        inputs, targets = make_data(3 * world * PER_RANK)
        loader = DataLoader(Stream(inputs, targets), batch_size=PER_RANK)
        first, second, optimizer, loader = accelerator.prepare(first, second, optimizer, loader)
        for x, y in loader:
            with accelerator.accumulate(first, second):
                accelerator.backward(nn.functional.mse_loss(first(x), y))
                accelerator.backward(nn.functional.l1_loss(second(x), y))
        return torch.cat([gradients(first), gradients(second)])

    first, second = make_model(False), make_model(False)
    inputs, targets = make_data(3 * world * PER_RANK)
    nn.functional.mse_loss(first(inputs), targets).backward()
    nn.functional.l1_loss(second(inputs), targets).backward()
    expected = torch.cat([gradients(first), gradients(second)])
    for gradient in pool.run(world, joint):
        assert ((gradient - expected).norm() / expected.norm()).item() < REL
