"""Shuffled order depends on seed and epoch alone, not on the number of processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

SAMPLES, GLOBAL = 96, 8


def orders(seed: int, epochs: int, workers: int, options: dict[str, Any]) -> list[list[int]]:
    """Return the global order of each epoch, as every rank sees it after gathering."""
    from accel import Accelerator
    from accel.utils import DataLoaderConfiguration, set_seed

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
    set_seed(seed)
    size = GLOBAL if options.get("split_batches") else GLOBAL // accelerator.num_processes
    data = TensorDataset(torch.arange(SAMPLES))
    loader = accelerator.prepare(DataLoader(data, batch_size=size, shuffle=True, num_workers=workers))
    return [
        [int(i) for (batch,) in loader for i in accelerator.gather_for_metrics(batch)] for _ in range(epochs)
    ]


@pytest.mark.parametrize(
    "options", [{}, {"use_seedable_sampler": True, "data_seed": 5}, {"split_batches": True}], ids=str
)
def test_order_is_the_same_on_1_2_and_4_processes(options: dict[str, Any], pool: Any) -> None:
    expected = pool.run(1, orders, 3, 3, 0, options)[0]
    for epoch in expected:
        assert sorted(epoch) == list(range(SAMPLES))
    assert expected[0] != expected[1] != expected[2]
    for world in (2, 4):
        for rank, seen in enumerate(pool.run(world, orders, 3, 3, 0, options)):
            assert seen == expected, f"rank {rank} of {world}"


def test_order_follows_the_seed(pool: Any) -> None:
    first, again, other = (pool.run(2, orders, seed, 1, 0, {})[0] for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_workers_do_not_change_the_order(pool: Any) -> None:
    assert pool.run(2, orders, 3, 2, 2, {}) == pool.run(2, orders, 3, 2, 0, {})
