"""Prepared loaders go on where they were, on real ranks: exactly on as many, in the same order on others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler

SAMPLES, GLOBAL = 46, 8
State = dict[str, Any]


class Numbers(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index)


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from map(torch.tensor, range(SAMPLES))


class Drawn(Sampler[int]):
    """An order that is drawn from torch's global generator when an epoch begins."""

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(SAMPLES).tolist())


class Own(IterableDataset[torch.Tensor]):
    """Samples of each rank's own, and not equally many."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from (torch.tensor(100 * self.rank + index) for index in range(30 - 17 * self.rank))


class OwnMap(Dataset[torch.Tensor]):
    def __init__(self, rank: int) -> None:
        self.values = [int(value) for value in Own(rank)]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(self.values[index])


def build(kind: str, rank: int, world: int, size: int, workers: int) -> DataLoader[Any]:
    more: dict[str, Any] = {"batch_size": size, "num_workers": workers}
    if kind == "stream":
        return DataLoader(Stream(), **more)
    if kind == "own":
        return DataLoader(Own(rank), **more)
    if kind == "own map":
        return DataLoader(OwnMap(rank), **more)
    if kind == "distributed":
        return DataLoader(Numbers(), sampler=DistributedSampler(Numbers(), world, rank, seed=4), **more)
    if kind == "drawn":
        return DataLoader(Numbers(), sampler=Drawn(), **more)
    return DataLoader(Numbers(), shuffle=True, **more)


def walk(
    kind: str,
    options: State,
    workers: int = 0,
    saved: list[State] | None = None,
    stop: int = 0,
    epochs: int = 2,
) -> State:
    """Go through the epochs from ``saved`` on; ``stop``: save in the body of that batch."""
    from accel import Accelerator
    from accel.utils import DataLoaderConfiguration

    options = dict(options)
    sharding: State = {"sharding": "sharded"} if kind.startswith("own") else {}
    accelerator = Accelerator(
        cpu=True,
        dataloader_config=DataLoaderConfiguration(**options, **sharding),
        rng_types=["torch", "generator"] if kind == "drawn" else None,
    )
    rank, world = accelerator.process_index, accelerator.num_processes
    size = GLOBAL if options.get("split_batches") else GLOBAL // world
    torch.manual_seed(rank + 10)
    loader: Any = accelerator.prepare(build(kind, rank, world, size, workers))
    if saved is not None:
        own = saved[rank if len(saved) == world else 0]
        loader.resume_at(own["position"])
        torch.set_rng_state(own["generator"])
    seen: list[Any] = []
    after: State = {}
    for _ in range(loader.iteration, epochs):
        for batch in loader:
            noise = torch.rand(2).tolist()
            everybody = [int(value) for value in accelerator.gather_for_metrics(batch)]
            seen.append((everybody, batch.tolist(), loader.valid_mask.tolist(), noise))
            if len(seen) == stop:
                after = {"position": loader.position(), "generator": torch.get_rng_state()}
    return {"seen": seen, "saved": after}


@pytest.mark.world(2)
@pytest.mark.parametrize(
    ("kind", "options", "workers"),
    [
        ("shuffled", {}, 0),
        ("shuffled", {"split_batches": True, "audit": "epoch"}, 2),
        ("shuffled", {"dispatch_batches": True}, 0),
        ("stream", {}, 0),
        ("stream", {"dispatch_batches": True}, 0),
        ("stream", {}, 2),
        ("drawn", {}, 0),
        ("distributed", {}, 0),
        ("own", {}, 0),
        ("own map", {}, 0),
    ],
    ids=str,
)
def test_on_as_many_ranks_nothing_differs(pool: Any, kind: str, options: State, workers: int) -> None:
    # Own data: rank 1 has ended after four batches.
    for stop in (3, 5) if kind.startswith("own") else (3,):
        whole = pool.run(2, walk, kind, options, workers, None, stop)
        assert whole[0]["saved"]["position"]["batches"] == stop
        rest = pool.run(2, walk, kind, options, workers, [each["saved"] for each in whole], 1)
        last = pool.run(2, walk, kind, options, workers, [each["saved"] for each in rest])
        for before, after, again in zip(whole, rest, last, strict=True):
            assert after["seen"] == before["seen"][stop:]
            assert again["seen"] == before["seen"][stop + 1 :]


@pytest.mark.world(2, 4)
@pytest.mark.parametrize(
    ("worlds", "kind", "before", "after"),
    [
        ((2, 4), "shuffled", {}, {}),
        ((4, 1), "shuffled", {}, {}),
        ((1, 2), "shuffled", {"split_batches": True}, {"dispatch_batches": True}),
        ((2, 4), "stream", {}, {"split_batches": True}),
        ((4, 1), "stream", {}, {}),
        ((2, 1), "stream", {"dispatch_batches": True}, {}),
        ((1, 2), "stream", {}, {"dispatch_batches": True}),
    ],
    ids=str,
)
def test_on_other_ranks_the_global_order_goes_on(
    pool: Any, worlds: tuple[int, int], kind: str, before: State, after: State
) -> None:
    first = pool.run(worlds[0], walk, kind, before, 0, None, 2, 1)
    samples = [value for everybody, *_ in first[0]["seen"] for value in everybody]
    assert sorted(samples) == list(range(SAMPLES))
    position = first[0]["saved"]["position"]
    assert position["samples"] == 2 * GLOBAL
    for ranks in pool.run(worlds[1], walk, kind, after, 0, [each["saved"] for each in first], 0, 1):
        assert [value for everybody, *_ in ranks["seen"] for value in everybody] == samples[2 * GLOBAL :]


def test_ranks_that_go_on_at_different_places_are_told(pool: Any) -> None:
    whole = pool.run(2, walk, "shuffled", {}, 0, None, 2)
    later = pool.run(2, walk, "shuffled", {}, 0, None, 3)
    mixed = [whole[0]["saved"], later[1]["saved"]]
    for error in pool.failures(2, walk, "shuffled", {}, 0, mixed):
        assert "the ranks go on at different places of an epoch" in str(error)


def test_a_rank_that_has_begun_again_cannot_be_saved(pool: Any) -> None:
    def run() -> list[str]:
        from accel import Accelerator
        from accel.utils import DataLoaderConfiguration

        config = DataLoaderConfiguration(sharding="sharded", uneven="cycle")
        accelerator = Accelerator(cpu=True, dataloader_config=config)
        loader: Any = accelerator.prepare(DataLoader(Own(accelerator.process_index), batch_size=4))
        told = []
        for _ in loader:
            try:
                loader.position()
                told.append("")
            except Exception as error:
                told.append(f"{type(error).__name__}: {error}")
        return told

    first, second = pool.run(2, run)
    assert first == second
    assert first[0] == first[1] == ""
    assert "DataError: a rank has begun its data again" in first[5]
