"""A run that is left and resumed equals the one that was not: samples, losses, weights, optimizer state.

On the same number of processes everything is compared bit for bit: the same kernels run on the same numbers
in the same order, and a reduction over two ranks is one addition, which commutes. On another number of
processes sums are formed in another order, so weights are compared to 1e-12 in double precision, and the
order of the samples exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from accel import Accelerator
from accel.utils import DataLoaderConfiguration, set_seed

GLOBAL_BATCH = 8


class Numbers(Dataset[Any]):
    """Samples that know their index."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        return index, torch.randn(4, dtype=torch.float64, generator=generator)


class Stream(IterableDataset[Any]):
    """The same, one after another."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        numbers = Numbers(self.count)
        return (numbers[index] for index in range(self.count))


def train(
    folder: str,
    *,
    samples: int = 45,
    stop: int | None = None,
    resume: bool = False,
    epochs: int = 2,
    workers: int = 0,
    stream: bool = False,
    accumulate: int = 1,
    precision: str = "no",
    dropout: float = 0.3,
    save_at: int | None = None,
    block: bool = True,
) -> dict[str, Any]:
    """Train for ``epochs``, or until ``stop`` batches; save after ``save_at``; return all that was seen."""
    accelerator = Accelerator(
        cpu=True,
        project_dir=folder,
        gradient_accumulation_steps=accumulate,
        mixed_precision=precision,
        dataloader_config=DataLoaderConfiguration(data_seed=3),
    )
    set_seed(1)
    kind = torch.float64 if precision == "no" else torch.float32
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1)).to(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)
    data: Any = Stream(samples) if stream else Numbers(samples)
    size = GLOBAL_BATCH // accelerator.num_processes
    loader: Any = DataLoader(data, batch_size=size, shuffle=not stream, num_workers=workers)
    model, optimizer, scheduler, loader = accelerator.prepare(
        model, optimizer, scheduler, loader, schedule_in="updates"
    )
    set_seed(10, device_specific=True)
    if resume:
        assert accelerator.resume() is not None
    seen: list[Any] = []
    steps = 0
    for epoch in range(loader.iteration, epochs):
        for ids, values in loader:
            with accelerator.accumulate(model):
                loss = model(values.to(kind)).pow(2).mean()
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            steps += 1
            seen.append((epoch, accelerator.gather(ids).tolist(), loss.item(), scheduler.get_last_lr()))
            if steps == save_at:
                accelerator.save_state(block=block)
            if steps == stop:
                accelerator.wait_for_checkpoint()
                return {"seen": seen}
        seen.append((epoch, "end"))
    state = {name: value.tolist() for name, value in accelerator.unwrap_model(model).state_dict().items()}
    moments = [
        {key: value.tolist() for key, value in each.items()}
        for each in optimizer.state_dict()["state"].values()
    ]
    return {"seen": seen, "weights": state, "moments": moments}


def resumed_equals(pool: Any, world: int, folder: Path, cut: int, **options: Any) -> None:
    def whole() -> dict[str, Any]:
        return train(str(folder / "whole"), **options)

    def first() -> dict[str, Any]:
        # It goes on for two batches after the save, which then never happened.
        return train(str(folder / "cut"), save_at=cut, stop=cut + 2, **options)

    def second() -> dict[str, Any]:
        return train(str(folder / "cut"), resume=True, **options)

    wanted = pool.run(world, whole)
    begun = pool.run(world, first)
    rest = pool.run(world, second)
    for rank in range(world):
        batches = [each for each in begun[rank]["seen"] if each[1] != "end"]
        ended = [each for each in wanted[rank]["seen"] if each[1] != "end"]
        assert batches[:cut] == ended[:cut]
        got = [each for each in rest[rank]["seen"] if each[1] != "end"]
        assert got == ended[cut:]
        assert rest[rank]["weights"] == wanted[rank]["weights"]
        assert rest[rank]["moments"] == wanted[rank]["moments"]


@pytest.mark.world(1, 2)
@pytest.mark.parametrize(
    "cut", [1, 5, 6, 7], ids=["early", "before the end", "end of an epoch", "second epoch"]
)
def test_anywhere_in_an_epoch(pool: Any, world: int, tmp_path: Path, cut: int) -> None:
    resumed_equals(pool, world, tmp_path, cut)


@pytest.mark.world(1, 2)
@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 3},
        {"workers": 2},
        {"stream": True},
        {"precision": "fp16", "accumulate": 2},
        {"block": False},
    ],
    ids=["within a window", "workers", "stream", "fp16 scaler", "background"],
)
def test_with(pool: Any, world: int, tmp_path: Path, options: dict[str, Any]) -> None:
    resumed_equals(pool, world, tmp_path, 4, **options)


@pytest.mark.world(4)
@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 1), (1, 2)])
@pytest.mark.parametrize(
    ("cut", "options"),
    [(4, {}), (4, {"stream": True}), (5, {"accumulate": 3})],
    ids=["map-style", "stream", "within a window"],
)
def test_on_another_number_of_processes(
    pool: Any, world: int, tmp_path: Path, before: int, after: int, cut: int, options: dict[str, Any]
) -> None:
    # Dropout draws other numbers on another number of ranks; the samples divide evenly among all.
    options = {**options, "dropout": 0.0, "samples": 48}

    def whole() -> dict[str, Any]:
        return train(str(tmp_path / "whole"), **options)

    def first() -> dict[str, Any]:
        return train(str(tmp_path / "cut"), save_at=cut, stop=cut, **options)

    def second() -> dict[str, Any]:
        return train(str(tmp_path / "cut"), resume=True, **options)

    wanted = pool.run(before, whole)[0]
    pool.run(before, first)
    rest = pool.run(after, second)[0]

    def order(seen: list[Any]) -> list[Any]:
        return [(each[0], each[1]) for each in seen if each[1] != "end"]

    assert order(rest["seen"]) == order(wanted["seen"])[cut:]
    for name, values in wanted["weights"].items():
        got, expected = (torch.tensor(each, dtype=torch.float64) for each in (rest["weights"][name], values))
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.world(4)
@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (2, 1)])
def test_optimizer_state_is_bit_equal_on_another_number(
    pool: Any, world: int, tmp_path: Path, before: int, after: int
) -> None:
    def saved() -> list[Any]:
        accelerator = Accelerator(cpu=True, project_dir=str(tmp_path))
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        model, optimizer = accelerator.prepare(model, optimizer)
        for _ in range(3):
            accelerator.backward(model(torch.randn(2, 3)).pow(2).sum())
            optimizer.step()
            optimizer.zero_grad()
        accelerator.save_state()
        return [each.tolist() for state in optimizer.state.values() for each in state.values()]

    def loaded() -> list[Any]:
        accelerator = Accelerator(cpu=True, project_dir=str(tmp_path))
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        model, optimizer = accelerator.prepare(model, optimizer)
        accelerator.resume()
        return [each.tolist() for state in optimizer.state.values() for each in state.values()]

    wanted = pool.run(before, saved)[0]
    assert pool.run(after, loaded) == [wanted] * after
