"""Measure one library on two processes against plain PyTorch on the same two; rank 0 prints JSON.

Started by ``measure.py``, twice, with the variables that a launcher sets. Both ranks go through the same
blocks in the same order, and each block ends when the slower rank is through.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Row, blocks, training_parts
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

STEPS = 50
STEP = 0.010
"""Seconds of the training step that the loaders' own work is put beside."""
LOADER_BLOCKS = 9
LONG = 3 * STEPS
"""Batches of a pass over a stream: where it starts, ranks wait for each other once."""


def step(library: str) -> dict[str, Row]:
    """One training step beside DistributedDataParallel, of a model that takes next to nothing itself."""
    x, y = torch.randn(8, 32), torch.randn(8, 8)
    return {"training step, 2 processes": _step(library, training_parts, x, y, STEPS)}


def middling(library: str) -> dict[str, Row]:
    """The same with 0.9 million parameters: a step of about 10 ms."""

    def parts() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(256, 640), nn.ReLU(), nn.Linear(640, 640), nn.ReLU(), nn.Linear(640, 512)
        )
        return model, torch.optim.SGD(model.parameters(), lr=1e-4), None

    x, y = torch.randn(64, 256), torch.randn(64, 512)
    return {"training step of ~10 ms, 2 processes": _step(library, parts, x, y, STEPS // 2)}


def _step(library: str, parts: Callable[[], Any], x: torch.Tensor, y: torch.Tensor, steps: int) -> Row:
    """Forward, backward, clip and optimizer, in torch's container and prepared."""
    accelerator = importlib.import_module(library).Accelerator(cpu=True)
    raw_model, raw_optimizer, _ = parts()
    shared = DistributedDataParallel(raw_model)

    def plain() -> int:
        for _ in range(steps):
            nn.functional.mse_loss(shared(x), y).backward()
            nn.utils.clip_grad_norm_(shared.parameters(), 1.0)
            raw_optimizer.step()
            raw_optimizer.zero_grad()
        return steps

    model, optimizer = accelerator.prepare(*parts()[:2])

    def prepared() -> int:
        for _ in range(steps):
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.mse_loss(model(x), y))
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        return steps

    return blocks(plain, prepared)


def weighted(library: str) -> dict[str, Row]:
    """One step whose loss is the mean over unequally many tokens of both ranks."""
    module = importlib.import_module(library)
    accelerator = module.Accelerator(cpu=True)
    x, y = torch.randn(8, 32), torch.randn(8, 8)
    count = 5 + accelerator.process_index
    raw_model, raw_optimizer, _ = training_parts()
    shared = DistributedDataParallel(raw_model)

    def plain() -> int:
        for _ in range(STEPS):
            total = torch.tensor(float(count))
            torch.distributed.all_reduce(total)
            loss = nn.functional.mse_loss(shared(x), y, reduction="sum")
            (loss * 2 / total).backward()
            raw_optimizer.step()
            raw_optimizer.zero_grad()
        return STEPS

    model, optimizer = accelerator.prepare(*training_parts()[:2])
    backward = _weighted_backward(library, accelerator, count)

    def prepared() -> int:
        for _ in range(STEPS):
            with accelerator.accumulate(model):
                backward(nn.functional.mse_loss(model(x), y, reduction="sum"))
                optimizer.step()
                optimizer.zero_grad()
        return STEPS

    return {"weighted step, 2 processes": blocks(plain, prepared)}


def _weighted_backward(library: str, accelerator: Any, count: int) -> Callable[[Any], None]:
    """Return ours, or what the peer's documents say to write in its place."""
    if library == "accel":
        return lambda loss: accelerator.backward(loss, weight=count)

    def by_hand(loss: Any) -> None:
        total = accelerator.gather(torch.tensor([count])).sum().item()
        accelerator.backward(loss * accelerator.num_processes / total)

    return by_hand


class Stream(IterableDataset[Any]):
    """Samples without a length; with ``rank``, those that a rank of two would pick out by hand."""

    def __init__(self, rank: int | None = None) -> None:
        self.rank = rank

    def __iter__(self) -> Iterator[Any]:
        for number, sample in enumerate(torch.zeros(16 * 2 * LONG, 8)):
            if self.rank is None or number // 16 % 2 == self.rank:
                yield sample


def waits(loader: Any) -> float:
    """Return the microseconds that a loop waits for its loader, the mean per batch of a pass.

    The ranks meet before the pass and after each step, as they do when gradients are averaged: what a rank
    waits for the other is not the loader's.
    """
    waited, count = 0.0, 0
    torch.distributed.all_reduce(torch.zeros(1))
    start = time.perf_counter()
    for _ in loader:
        waited += time.perf_counter() - start
        count += 1
        time.sleep(STEP)
        torch.distributed.all_reduce(torch.zeros(1))
        start = time.perf_counter()
    return waited / count * 1e6


def per_cent(before: Any, after: Any) -> Row:
    """Return what ``after`` waits longer than ``before``, in per cent of a step."""
    waits(before)
    waits(after)
    added = statistics.median(-waits(before) + waits(after) for _ in range(LOADER_BLOCKS))
    return {"prepared": added / (STEP * 1e6) * 100}


def audit(library: str) -> dict[str, Row]:
    """What the default audit costs: it compares the first batches of each pass."""
    if library != "accel":
        return {}
    from accel import Accelerator
    from accel.utils import DataLoaderConfiguration

    loaders = []
    for mode in ("off", "first_batches"):
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(audit=mode))
        data = TensorDataset(torch.zeros(16 * 2 * STEPS, 8))
        loaders.append(accelerator.prepare(DataLoader(data, batch_size=16, shuffle=True)))
    return {"audit, in a step of 10 ms": per_cent(*loaders)}


def stream(library: str) -> dict[str, Row]:
    """What the agreement on the end of a stream costs, beside the same stream without one.

    The peer always funnels a stream through rank 0; it is put beside the stream read by hand on each rank.
    """
    accelerator = importlib.import_module(library).Accelerator(cpu=True)

    def by_hand() -> DataLoader[Any]:
        return DataLoader(Stream(accelerator.process_index), batch_size=16)

    if library == "accel":
        prepare = partial(accelerator.prepare_data_loader, sharding="sharded")
        plain, prepared = prepare(by_hand(), uneven="independent"), prepare(by_hand(), uneven="stop_all")
    else:
        plain, prepared = by_hand(), accelerator.prepare(DataLoader(Stream(), batch_size=16))
    return {"stream with a vote, in a step of 10 ms": per_cent(plain, prepared)}


def stop(library: str) -> dict[str, Row]:
    """What it costs to ask at each step whether to stop, which two ranks answer together."""
    if library != "accel":
        return {}
    from accel import Accelerator

    accelerator = Accelerator(cpu=True)

    def asked() -> float:
        spent = 0.0
        for _ in range(LONG):
            time.sleep(STEP)
            torch.distributed.all_reduce(torch.zeros(1))
            start = time.perf_counter()
            if accelerator.should_stop:
                raise RuntimeError(str(accelerator.stop_reason))
            spent += time.perf_counter() - start
        return spent / LONG

    asked()
    row = {"prepared": statistics.median(asked() for _ in range(LOADER_BLOCKS)) / STEP * 100}
    return {"should_stop, in a step of 10 ms": row}


CASES: dict[str, Callable[[str], dict[str, Row]]] = {
    "step": step,
    "middling": middling,
    "weighted": weighted,
    "audit": audit,
    "stream": stream,
    "stop": stop,
}


def pair(library: str, case: str) -> dict[str, Row]:
    """Run one case on two processes of this interpreter and return rank 0's rows."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__)), library, case],
            env={
                **os.environ,
                **shared,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "ACCELERATE_USE_CPU": "true",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"{case} on two processes failed for {library}:\n{errors}")
    rows: dict[str, Row] = json.loads(said[0][0].splitlines()[-1])
    return rows


def main() -> None:
    """Run one case as one of the two ranks."""
    library, case = sys.argv[1:]
    torch.set_num_threads(1)
    rows = CASES[case](library)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
