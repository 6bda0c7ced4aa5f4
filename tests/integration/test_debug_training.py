"""Debug mode through a whole program: no alarm for what is right, and the line of what is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

DEBUG = {"ACCELERATE_DEBUG_MODE": "1"}
SOON = {**DEBUG, "ACCELERATE_DEBUG_TIMEOUT": "20"}
LOADERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "map-style": ("map", {"batch_size": 2}, {}),
    "shuffled": ("map", {"batch_size": 2, "shuffle": True}, {"use_seedable_sampler": True}),
    "uneven": ("map", {"batch_size": 2}, {"even_batches": False}),
    "split": ("map", {"batch_size": 4}, {"split_batches": True}),
    "dispatched": ("map", {"batch_size": 2}, {"dispatch_batches": True}),
    "stream": ("stream", {"batch_size": 2}, {}),
    "dispatched stream": ("stream", {"batch_size": 2}, {"dispatch_batches": True}),
}


class Stream(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter([(torch.tensor([float(i)]), torch.tensor([2.0 * i])) for i in range(11)])


def train(style: str, loader_options: dict[str, Any], config: dict[str, Any]) -> list[float]:
    from accel import Accelerator
    from accel.utils import DataLoaderConfiguration, gather_object, set_seed

    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=2,
        dataloader_config=DataLoaderConfiguration(**config),
    )
    set_seed(1)
    numbers = torch.arange(11.0)[:, None]
    data: Any = TensorDataset(numbers, 2 * numbers) if style == "map" else Stream()
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    parts = accelerator.prepare(model, optimizer, scheduler, DataLoader(data, **loader_options))
    model, optimizer, scheduler, loader = parts
    seen: list[float] = []
    with accelerator.main_process_first():
        pass
    for _ in range(2):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = torch.nn.functional.mse_loss(model(x), y)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            seen += accelerator.gather_for_metrics(x).flatten().tolist()
        accelerator.wait_for_everyone()
        assert len(gather_object([accelerator.process_index])) == accelerator.num_processes
        if accelerator.is_main_process:
            accelerator.print("an epoch")
    seen += accelerator.reduce(torch.tensor([len(seen)]), "sum").tolist()
    seen += [each.item() for each in model.parameters()]
    return seen


@pytest.mark.parametrize("kind", LOADERS)
def test_a_right_program_raises_no_alarm_and_computes_the_same(pool: Any, kind: str) -> None:
    # Seconds that a slow machine may need; nothing waits for them unless a rank is missing.
    assert pool.run(2, train, *LOADERS[kind], env=SOON) == pool.run(2, train, *LOADERS[kind])


PROGRAM = """
import time

import torch

from accel import Accelerator

accelerator = Accelerator(cpu=True)
loss = torch.ones(1)
accelerator.gather(loss)
if accelerator.is_main_process:
    losses = accelerator.gather(loss)  # only here
else:
    time.sleep(300)  # busy elsewhere
"""


def lines_of(program: str) -> tuple[int, int]:
    lines = program.splitlines()
    only, busy = (next(n for n, line in enumerate(lines, 1) if word in line) for word in ("only", "busy"))
    return only, busy


def test_the_launcher_switches_it_on_and_the_culprit_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    words = [sys.executable, "-m", "accel_cli", "launch", "--cpu", "--num_processes=2", "--debug", "train.py"]
    environment = {**os.environ, "ACCELERATE_DEBUG_TIMEOUT": "2"}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    only, busy = lines_of(PROGRAM)
    assert done.returncode != 0
    assert "DistributedOperationException: gather waits for rank 1." in done.stderr
    assert f"- Process 0: [1] torch.float32, gather at {tmp_path}/train.py:{only}" in done.stderr
    assert f"- Process 1: has not come, is at {tmp_path}/train.py:{busy}, latest call gather" in done.stderr
