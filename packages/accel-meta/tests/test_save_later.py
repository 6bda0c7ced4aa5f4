"""Saving in the background: what is saved is the state of the moment, and a failure is heard of."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from accel import Accelerator
from accel.utils import ProjectConfiguration
from accel_core.errors import CapabilityError, CheckpointError
from accel_state.checkpoint import CheckpointStore


def setup(folder: Path, limit: int | None = None) -> tuple[Accelerator, nn.Module, Any]:
    project = ProjectConfiguration(
        project_dir=str(folder), automatic_checkpoint_naming=True, total_limit=limit
    )
    accelerator = Accelerator(cpu=True, project_config=project)
    model = nn.Linear(200, 100)
    return accelerator, *accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))


def step(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> None:
    accelerator.backward(model(torch.randn(4, 200)).pow(2).mean())
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.world(1, 2)
def test_what_is_saved_is_the_state_of_the_moment(pool: Any, world: int, tmp_path: Path) -> None:
    def run() -> Any:
        parts = setup(tmp_path, limit=2)
        accelerator, model, _ = parts
        for _ in range(4):
            step(*parts)
            wanted = [each.detach().clone() for each in accelerator.unwrap_model(model).parameters()]
            accelerator.save_state(block=False)
        step(*parts)
        accelerator.wait_for_checkpoint()
        report = accelerator.resume()
        assert report is not None
        assert report.ok
        got = list(accelerator.unwrap_model(model).parameters())
        return all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))

    assert pool.run(world, run) == [True] * world
    found = CheckpointStore().listed(tmp_path / "checkpoints")
    assert [Path(each).name for each in found] == ["checkpoint_2", "checkpoint_3"]


@pytest.mark.world(2)
def test_a_failure_is_raised_by_all_ranks_at_one_backward(pool: Any, world: int, tmp_path: Path) -> None:
    def run() -> tuple[int, str]:
        parts = setup(tmp_path)
        step(*parts)
        parts[0].save_state()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if parts[0].is_main_process:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            parts[0].save_state(block=False)
            for number in range(10_000):
                try:
                    step(*parts)
                except CheckpointError as error:
                    return number, str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return -1, ""

    found = pool.run(world, run)
    assert len({number for number, _ in found}) == 1
    assert found[0][0] >= 0
    assert all("checkpoint_1 was not saved in the background" in told for _, told in found)
    assert all("rank 0" in told for _, told in found)
    assert [Path(each).name for each in CheckpointStore().listed(tmp_path / "checkpoints")] == [
        "checkpoint_0"
    ]


@pytest.mark.world(1)
def test_hooks_that_write_files_are_refused(pool: Any, world: int, tmp_path: Path) -> None:
    def run() -> None:
        accelerator, *_ = setup(tmp_path)
        accelerator.register_save_state_pre_hook(lambda models, weights, folder: None)
        with pytest.raises(CapabilityError, match="block=True"):
            accelerator.save_state(block=False)
        assert not (tmp_path / "checkpoints").exists()

    pool.run(world, run)


@pytest.mark.world(1, 2)
@pytest.mark.parametrize("stopped", [False, True])
def test_a_loop_left_because_of_a_stop_goes_on_where_it_was_left(
    pool: Any, world: int, tmp_path: Path, stopped: bool
) -> None:
    def loop(accelerator: Accelerator, loader: Any) -> list[int]:
        seen = []
        for number, (x,) in enumerate(loader):
            seen += accelerator.gather(x).tolist()
            if stopped and number == 1:
                accelerator.request_stop("enough")
            # All ranks hear of it at one step, which may be the next one.
            if accelerator.should_stop or (not stopped and number == 2):
                break
        return seen

    def make() -> tuple[Accelerator, Any]:
        accelerator = Accelerator(cpu=True, project_dir=str(tmp_path))
        data = torch.utils.data.TensorDataset(torch.arange(80))
        return accelerator, accelerator.prepare(torch.utils.data.DataLoader(data, batch_size=4 // world))

    def first() -> list[int]:
        accelerator, loader = make()
        seen = loop(accelerator, loader)
        accelerator.save_state()
        return seen

    def second() -> tuple[int, list[int]]:
        accelerator, loader = make()
        accelerator.resume()
        epoch = loader.iteration
        return epoch, [each for (x,) in loader for each in accelerator.gather(x).tolist()]

    seen = pool.run(world, first)[0]
    epoch, rest = pool.run(world, second)[0]
    assert epoch == (0 if stopped else 1)
    assert (seen + rest if stopped else rest) == list(range(80))
