"""Measure one library against plain PyTorch in this interpreter; print the numbers as JSON.

    python measure.py accel step loader sampler
    python measure.py accelerate step loader sampler two

Plain and prepared code run in turn, in blocks, so that a machine that drifts slows both; each figure is
the median over the blocks. Both libraries take the same calls, so one program measures both.
"""

from __future__ import annotations

import copy
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

Row = dict[str, float]
BLOCKS = 31


def blocks(plain: Callable[[], int], prepared: Callable[[], int]) -> Row:
    """Return microseconds per item, the median over the blocks; each call returns how many items it did.

    What is added is the median of the differences of neighbouring blocks: they had the same machine.
    """
    plain()
    prepared()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(BLOCKS):
        for run, kept in zip((plain, prepared), times, strict=True):
            start = time.perf_counter()
            items = run()
            kept.append((time.perf_counter() - start) / items * 1e6)
    added = statistics.median(after - before for before, after in zip(*times, strict=True))
    before = statistics.median(times[0])
    return {"plain": before, "prepared": before + added, "added": added, "ratio": 1 + added / before}


def accelerator_of(library: str) -> Any:
    """Return the library's Accelerator for one CPU process."""
    return importlib.import_module(library).Accelerator(cpu=True)


def training_parts() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """Return a model small enough that the loop around it can be seen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1000)


def step(library: str) -> dict[str, Row]:
    """One training step: forward, backward, clip, optimizer and scheduler."""
    x, y = torch.randn(8, 32), torch.randn(8, 8)
    raw_model, raw_optimizer, raw_scheduler = training_parts()

    def plain() -> int:
        for _ in range(200):
            loss = nn.functional.mse_loss(raw_model(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(raw_model.parameters(), 1.0)
            raw_optimizer.step()
            raw_scheduler.step()
            raw_optimizer.zero_grad()
        return 200

    accelerator = accelerator_of(library)
    model, optimizer, scheduler = accelerator.prepare(*training_parts())

    def prepared() -> int:
        for _ in range(200):
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(x), y)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        return 200

    return {"training step": blocks(plain, prepared)}


def weighted(library: str) -> dict[str, Row]:
    """One step whose loss is a sum over tokens, divided by their number."""
    x, y = torch.randn(8, 32), torch.randn(8, 8)
    raw_model, raw_optimizer, _ = training_parts()

    def plain() -> int:
        for _ in range(200):
            (nn.functional.mse_loss(raw_model(x), y, reduction="sum") / 64).backward()
            raw_optimizer.step()
            raw_optimizer.zero_grad()
        return 200

    accelerator = accelerator_of(library)
    model, optimizer = accelerator.prepare(*training_parts()[:2])
    # The peer has no weights: its documents divide by hand.
    backward = (
        (lambda loss: accelerator.backward(loss, weight=64))
        if library == "accel"
        else (lambda loss: accelerator.backward(loss / 64))
    )

    def prepared() -> int:
        for _ in range(200):
            with accelerator.accumulate(model):
                backward(nn.functional.mse_loss(model(x), y, reduction="sum"))
                optimizer.step()
                optimizer.zero_grad()
        return 200

    return {"weighted step": blocks(plain, prepared)}


class Batches(Dataset[Any]):
    """Batches that are ready, so that only the loader's own work is measured."""

    def __init__(self) -> None:
        self.batch = [torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64)]

    def __len__(self) -> int:
        return 2000

    def __getitem__(self, index: int) -> Any:
        return self.batch


def first(samples: list[Any]) -> Any:
    """Return the first sample: a batch that needs no collating."""
    return samples[0]


def loader(library: str) -> dict[str, Row]:
    """One batch of a loader with two tensors."""
    raw = DataLoader(Batches(), batch_size=1, collate_fn=first)
    prepared = accelerator_of(library).prepare(DataLoader(Batches(), batch_size=1, collate_fn=first))

    def walk(which: Any) -> int:
        count = 0
        for _ in which:
            count += 1
        return count

    return {"loader, per batch": blocks(lambda: walk(raw), lambda: walk(prepared))}


def sampler(library: str) -> dict[str, Row]:
    """One local batch of 32 indices of a sharded batch sampler, by world size."""
    module = importlib.import_module("accel_data" if library == "accel" else "accelerate.data_loader")
    rows = {}
    for world in (1, 8, 64, 512):
        local = 400 if world < 512 else 100
        order = SequentialSampler(range(32 * world * local))
        shard = module.BatchSamplerShard(
            BatchSampler(order, 32, drop_last=False), num_processes=world, process_index=0
        )

        def walk(shard: Any = shard) -> int:
            count = 0
            for _ in shard:
                count += 1
            return count

        walk()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            items = walk()
            times.append((time.perf_counter() - start) / items * 1e6)
        rows[f"local batch, world size {world}"] = {"prepared": statistics.median(times)}
    return rows


def exactness(library: str) -> dict[str, Row]:
    """How far the gradient of a short last window is from that of its samples in one batch, in per cent."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(12, 4, dtype=torch.float64), torch.randn(12, 1, dtype=torch.float64)
    plain = nn.Linear(4, 1).double()
    model = copy.deepcopy(plain)
    nn.functional.mse_loss(plain(inputs[8:]), targets[8:]).backward()
    accelerator = importlib.import_module(library).Accelerator(cpu=True, gradient_accumulation_steps=4)
    data = torch.utils.data.TensorDataset(inputs, targets)
    model, batches = accelerator.prepare(model, DataLoader(data, batch_size=2))
    for x, y in batches:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            last = torch.cat([p.grad.flatten() for p in model.parameters()])
            if accelerator.sync_gradients:
                model.zero_grad()
    want = torch.cat([p.grad.flatten() for p in plain.parameters()])
    off = ((last - want).norm() / want.norm()).item() * 100
    return {"gradient of a short last window, off by": {"prepared": off if off > 1e-9 else 0.0}}


def moving(library: str) -> dict[str, Row]:
    """A nested batch of 12 tensors that are on the device already."""
    module = importlib.import_module("accel.utils" if library == "accel" else "accelerate.utils")

    def tensor() -> torch.Tensor:
        return torch.zeros(2)

    batch = {
        "ids": tensor(),
        "pairs": [tensor(), tensor(), (tensor(), tensor())],
        "inner": {"mask": tensor(), "spans": [tensor(), tensor()]},
        "targets": (tensor(), {"boxes": tensor(), "labels": tensor()}),
        "weight": tensor(),
    }
    device = torch.device("cpu")

    def send() -> float:
        start = time.perf_counter()
        for _ in range(1000):
            module.send_to_device(batch, device)
        return (time.perf_counter() - start) * 1e3

    send()
    return {"send_to_device, 12 tensors in place": {"prepared": statistics.median(send() for _ in range(31))}}


def on_two_processes(library: str) -> dict[str, Row]:
    """Return what only shows beside another rank: synchronised steps, weights, agreement on data."""
    from pair import CASES as PAIRED
    from pair import pair

    rows: dict[str, Row] = {}
    for case in PAIRED:
        rows.update(pair(library, case))
    return rows


CASES: dict[str, Callable[[str], dict[str, Row]]] = {
    "step": step,
    "weighted": weighted,
    "two": on_two_processes,
    "loader": loader,
    "sampler": sampler,
    "moving": moving,
    "exactness": exactness,
}


def main() -> None:
    """Run the cases named on the command line."""
    library, *names = sys.argv[1:]
    torch.set_num_threads(1)
    rows: dict[str, Row] = {}
    for name in names or CASES:
        rows.update(CASES[name](library))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
