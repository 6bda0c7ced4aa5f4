"""Data parallelism over a part of the ranks: DDP averages over the group that the collectives run on."""

from __future__ import annotations

from typing import Any


def train() -> list[float]:
    import torch
    from torch import nn

    from accel_core.protocols import StrategyContext, Unit
    from accel_parallel import DataParallel
    from accel_precision import FullPrecision
    from accel_state import PartialState

    here = PartialState(cpu=True).process_state
    world, rank = here.collectives, here.collectives.rank
    # Every rank of the world makes every group.
    groups = [world.group([0, 2]), world.group([1, 3])]
    strategy = DataParallel(
        StrategyContext(
            device=here.device,
            hardware=here.hardware,
            collectives=groups[rank % 2],
            precision=FullPrecision(here.device),
        )
    )
    unit = strategy.wrap(Unit(name="m", model=nn.Linear(1, 1, bias=False)))
    strategy.backward(unit.model(torch.full((1, 1), float(rank))).sum())
    return [parameter.grad.item() for parameter in unit.model.parameters()]


def test_gradients_are_averaged_over_the_given_ranks_only(pool: Any) -> None:
    # The gradient is the input, which is the rank: the mean over 0 and 2, and over 1 and 3.
    assert pool.run(4, train) == [[1.0], [2.0], [1.0], [2.0]]
