"""Distributed evaluation sees each sample exactly once, in order, whatever the sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

WORLDS = (1, 2, 4)
SIZES = tuple(range(1, 102))


class Numbers(Dataset[torch.Tensor]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index)


class Counter(IterableDataset[torch.Tensor]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(self.count))


def evaluate_all(
    style: str, batch_size: int, sizes: tuple[int, ...], options: dict[str, Any]
) -> dict[int, list[int]]:
    from accel import Accelerator
    from accel.utils import DataLoaderConfiguration

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
    seen: dict[int, list[int]] = {}
    for count in sizes:
        data: Any = Numbers(count) if style == "map" else Counter(count)
        loader = accelerator.prepare(DataLoader(data, batch_size=batch_size))
        seen[count] = []
        for batch in loader:
            seen[count].extend(accelerator.gather_for_metrics(batch).tolist())
    return seen


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("style", ["map", "stream"])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_exactly_the_samples_in_order(world: int, style: str, batch_size: int, pool: Any) -> None:
    for rank, seen in enumerate(pool.run(world, evaluate_all, style, batch_size, SIZES, {})):
        for count, values in seen.items():
            assert values == list(range(count)), f"rank {rank} of {world}, {count} samples"


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(
    "options", [{"split_batches": True}, {"dispatch_batches": True}], ids=["split", "dispatch"]
)
@pytest.mark.parametrize("style", ["map", "stream"])
def test_other_ways_to_cut_the_data(world: int, options: dict[str, Any], style: str, pool: Any) -> None:
    sizes = (1, 3, 4, 7, 8, 9, 31, 32, 33, 101)
    for seen in pool.run(world, evaluate_all, style, 8, sizes, options):
        for count, values in seen.items():
            assert values == list(range(count)), f"{count} samples"


class Batches(IterableDataset[torch.Tensor]):
    """A stream that makes its own batches, of three samples each."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(3 * self.count).split(3))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("options", [{}, {"dispatch_batches": True}], ids=["sharded", "dispatch"])
@pytest.mark.parametrize("workers", [0, 1])
def test_streams_of_whole_batches(world: int, options: dict[str, Any], workers: int, pool: Any) -> None:
    def evaluate() -> list[list[int]]:
        from accel import Accelerator
        from accel.utils import DataLoaderConfiguration

        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
        found = []
        for count in (1, 2, 3, 5):
            loader = accelerator.prepare(DataLoader(Batches(count), batch_size=None, num_workers=workers))
            found.append([i for batch in loader for i in accelerator.gather_for_metrics(batch).tolist()])
        return found

    for found in pool.run(world, evaluate):
        assert found == [list(range(3 * count)) for count in (1, 2, 3, 5)]


@pytest.mark.parametrize("world", WORLDS)
def test_nested_evaluation_and_early_break(world: int, pool: Any) -> None:
    """Evaluating inside an epoch, also when that loop is left early, changes nothing in either loop."""

    def loops() -> tuple[list[int], list[list[int]], list[bool]]:
        from accel import Accelerator

        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        train = accelerator.prepare(DataLoader(Numbers(13), batch_size=2))
        test = accelerator.prepare(DataLoader(Counter(9), batch_size=2))
        outer: list[int] = []
        inner: list[list[int]] = []
        closes: list[bool] = []
        for step, batch in enumerate(train):
            with accelerator.accumulate():
                closes.append(accelerator.sync_gradients)
            inner.append([])
            for position, values in enumerate(test):
                if step % 2 and position == 1:
                    break
                inner[-1].extend(accelerator.gather_for_metrics(values).tolist())
            outer.extend(accelerator.gather_for_metrics(batch).tolist())
        assert accelerator.gradient_state.active_dataloader is None
        return outer, inner, closes

    rounds = -(-13 // (2 * world))
    for outer, inner, closes in pool.run(world, loops):
        assert outer == list(range(13))
        assert closes == [(step + 1) % 2 == 0 or step + 1 == rounds for step in range(rounds)]
        for step, values in enumerate(inner):
            # A loop left before its second batch has seen one global batch, padding removed.
            assert values == list(range(min(9, 2 * world) if step % 2 else 9))


@pytest.mark.parametrize("world", [2, 4])
def test_objects_and_nested_values(world: int, pool: Any) -> None:
    def collect() -> tuple[list[str], list[int], list[int]]:
        from accel import Accelerator

        accelerator = Accelerator(cpu=True)
        loader = accelerator.prepare(DataLoader(Numbers(10), batch_size=3))
        names: list[str] = []
        values: list[int] = []
        doubles: list[int] = []
        for batch in loader:
            names.extend(
                accelerator.gather_for_metrics([f"sample {int(i)}" for i in batch], use_gather_object=True)
            )
            got = accelerator.gather_for_metrics({"plain": batch, "twice": [batch.repeat_interleave(2)]})
            values.extend(got["plain"].tolist())
            doubles.extend(got["twice"][0].tolist())
        return names, values, doubles

    for names, values, doubles in pool.run(world, collect):
        assert names == [f"sample {i}" for i in range(10)]
        assert values == list(range(10))
        assert doubles == [i for i in range(10) for _ in range(2)]


def test_rows_that_cannot_be_told_apart_are_refused(pool: Any) -> None:
    def wrong() -> None:
        from accel import Accelerator

        accelerator = Accelerator(cpu=True)
        for batch in accelerator.prepare(DataLoader(Numbers(5), batch_size=4)):
            accelerator.gather_for_metrics(batch.float().mean())

    for error in pool.failures(2, wrong):
        assert type(error).__name__ == "DataError"
        assert "3 of which are padding" in str(error)
        assert "use gather()" in str(error)


def evaluate_means(sizes: tuple[int, ...], options: dict[str, Any]) -> dict[int, tuple[int, list[int]]]:
    """Gather the documented ``loss.repeat(batch_size)``, and two values a sample beside it."""
    from accel import Accelerator
    from accel.utils import DataLoaderConfiguration

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
    seen = {}
    for count in sizes:
        loader = accelerator.prepare(DataLoader(Numbers(count), batch_size=8))
        means = [len(accelerator.gather_for_metrics(batch.double().mean().repeat(8))) for batch in loader]
        pairs: list[int] = []
        for batch in loader:
            pairs += accelerator.gather_for_metrics(batch.repeat_interleave(2)).tolist()
        seen[count] = (sum(means), pairs)
    return seen


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("even", [True, False])
def test_a_mean_repeated_for_each_sample_counts_as_many_as_there_are(
    world: int, even: bool, pool: Any
) -> None:
    # With even_batches=False no rank may be without a batch in the last round.
    sizes = tuple(range(32, 65)) if even else tuple(count for count in range(64 - 7, 65))
    for seen in pool.run(world, evaluate_means, sizes, {"even_batches": even}):
        for count, (means, pairs) in seen.items():
            assert means == count
            assert pairs == [value for value in range(count) for _ in range(2)]


def evaluate_one_and_two_rows(count: int) -> tuple[int, int]:
    from accel import Accelerator

    accelerator = Accelerator(cpu=True)
    one = two = 0
    for batch in accelerator.prepare(DataLoader(Numbers(count), batch_size=8)):
        first, second = accelerator.gather_for_metrics((batch, batch.repeat_interleave(2)))
        one, two = one + len(first), two + len(second)
    return one, two


def test_two_rows_a_sample_of_half_a_batch_are_no_filling(pool: Any) -> None:
    assert pool.run(1, evaluate_one_and_two_rows, 12) == [(12, 24)]
