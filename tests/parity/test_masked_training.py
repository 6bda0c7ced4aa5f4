"""Training on ranks with unequal amounts of data: weighted by the mask, every sample counts once, exactly.

Tolerance: float64, relative 1e-12; the sums are taken in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

REL = 1e-12
SIZE = 3
COUNTS = {2: (11, 4), 4: (0, 10, 3, 7)}


def samples(rank: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(count, 5, dtype=torch.float64, generator=generator)


def make_model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def losses(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).squeeze(-1).square()


class Own(IterableDataset[torch.Tensor]):
    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(samples(self.rank, self.count))


def train(counts: tuple[int, ...]) -> tuple[list[float], list[torch.Tensor]]:
    from accel import Accelerator

    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(Own(rank, counts[rank]), batch_size=SIZE)
    loader = accelerator.prepare_data_loader(loader, sharding="sharded")
    model, optimizer = accelerator.prepare(model, optimizer)
    values, gradients = [], []
    for batch in loader:
        mask = loader.valid_mask  # type: ignore[attr-defined]
        each = losses(model, batch)
        with accelerator.accumulate(model):
            accelerator.backward((each * mask).sum(), weight=int(mask.sum()))
            gradients.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
            optimizer.step()
            optimizer.zero_grad()
        kept = accelerator.gather_for_metrics(each.detach())
        values.append(kept.mean().item())
    return values, gradients


def expected(counts: tuple[int, ...]) -> tuple[list[float], list[torch.Tensor]]:
    """Train plainly on what the ranks still have at each step."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = [samples(rank, count).split(SIZE) if count else () for rank, count in enumerate(counts)]
    values, gradients = [], []
    for step in range(max(map(len, parts))):
        batch = torch.cat([part[step] for part in parts if step < len(part)])
        loss = losses(model, batch).mean()
        loss.backward()
        values.append(loss.item())
        gradients.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
        optimizer.step()
        optimizer.zero_grad()
    return values, gradients


@pytest.mark.parametrize("world", COUNTS)
def test_loss_and_gradients_are_those_of_the_samples_that_are_there(world: int, pool: Any) -> None:
    plain_values, plain_gradients = expected(COUNTS[world])
    assert len(plain_values) == 4
    for values, gradients in pool.run(world, train, COUNTS[world]):
        assert values == pytest.approx(plain_values, rel=REL)
        for mine, plain in zip(gradients, plain_gradients, strict=True):
            torch.testing.assert_close(mine, plain, rtol=REL, atol=REL * plain.abs().max().item())
