"""The state of a run behind a URI: saved by all processes, resumed by any number of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from accel import Accelerator
from accel.utils import ProjectConfiguration, set_seed
from accel_core.errors import CheckpointError, UnknownNameError
from accel_state.checkpoint import RemoteStore


def setup(project_dir: str) -> tuple[Accelerator, nn.Module, Any]:
    project = ProjectConfiguration(project_dir=project_dir, automatic_checkpoint_naming=True, total_limit=2)
    accelerator = Accelerator(cpu=True, project_config=project)
    set_seed(5)
    model = nn.Linear(20, 10)
    prepared = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    set_seed(7, device_specific=True)
    return accelerator, *prepared


def steps(run: tuple[Accelerator, nn.Module, Any], count: int) -> list[Any]:
    accelerator, model, optimizer = run
    for _ in range(count):
        accelerator.backward(model(torch.randn(4, 20)).pow(2).mean())
        optimizer.step()
        optimizer.zero_grad()
    return [each.tolist() for each in accelerator.unwrap_model(model).parameters()]


@pytest.mark.world(1, 2)
@pytest.mark.parametrize("block", [True, False])
def test_a_run_goes_on_from_a_uri(pool: Any, world: int, tmp_path: Path, block: bool) -> None:
    uri = f"file://{tmp_path}/run"

    def whole() -> list[Any]:
        run = setup(uri)
        for _ in range(3):
            steps(run, 2)
            run[0].save_state(block=block)
        after = steps(run, 2)
        run[0].wait_for_checkpoint()
        return after

    def rest() -> list[Any]:
        run = setup(uri)
        report = run[0].resume()
        assert report is not None
        assert report.ok
        after = steps(run, 2)
        assert run[0].save_state(block=block) == f"{uri}/checkpoints/checkpoint_3"
        run[0].wait_for_checkpoint()
        run[0].load_state(f"{uri}/checkpoints/checkpoint_2")
        return after

    assert pool.run(world, whole) == pool.run(world, rest)
    found = RemoteStore(local=tmp_path / "local").listed(f"{uri}/checkpoints")
    assert found == [f"{uri}/checkpoints/checkpoint_{number}" for number in (2, 3)]


@pytest.mark.world(1)
def test_hooks_write_into_it(pool: Any, world: int, tmp_path: Path) -> None:
    def run() -> None:
        parts = setup("memory://hooks/run")

        def write(models: Any, weights: Any, folder: str) -> None:
            (Path(folder) / "own.txt").write_text("mine")

        parts[0].register_save_state_pre_hook(write)
        target = parts[0].save_state()
        source = RemoteStore().open(target)
        assert (source.local() / "own.txt").read_text() == "mine"

    pool.run(world, run)


@pytest.mark.world(1)
def test_what_is_no_place_is_said_before_training_is_lost(pool: Any, world: int, tmp_path: Path) -> None:
    def run() -> None:
        parts = setup("memori://bucket/run")
        with pytest.raises(UnknownNameError, match="Did you mean 'memory'"):
            parts[0].save_state()
        with pytest.raises(CheckpointError, match="pass the URI as a string"):
            parts[0].load_state(Path("memory://bucket/run"))

    pool.run(world, run)
