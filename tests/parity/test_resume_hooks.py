"""Communication hooks go on where they were, or say that they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from accel import Accelerator
from accel.utils import DDPCommunicationHookType, DistributedDataParallelKwargs, set_seed
from accel_core.errors import CheckpointError


def make(folder: Path, *, start: int) -> tuple[Accelerator, nn.Module, Any]:
    hook = DistributedDataParallelKwargs(
        comm_hook=DDPCommunicationHookType.POWER_SGD,
        comm_state_option={"matrix_approximation_rank": 2, "start_powerSGD_iter": start},
    )
    accelerator = Accelerator(cpu=True, project_dir=str(folder), kwargs_handlers=[hook])
    set_seed(4)
    model = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 30))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    prepared = accelerator.prepare(model, optimizer)
    set_seed(9, device_specific=True)
    return accelerator, *prepared


def steps(run: tuple[Accelerator, nn.Module, Any], count: int) -> list[Any]:
    accelerator, model, optimizer = run
    for _ in range(count):
        accelerator.backward(model(torch.randn(4, 24)).pow(2).mean())
        optimizer.step()
        optimizer.zero_grad()
    return [each.tolist() for each in accelerator.unwrap_model(model).parameters()]


@pytest.mark.world(2)
def test_a_hook_that_has_not_begun_to_compress_goes_on(pool: Any, world: int, tmp_path: Path) -> None:
    def whole() -> list[Any]:
        run = make(tmp_path, start=5)
        steps(run, 3)
        run[0].save_state()
        # Compressed from the fifth step on: were the count lost, these would differ.
        return steps(run, 4)

    def rest() -> list[Any]:
        run = make(tmp_path, start=5)
        run[0].resume()
        return steps(run, 4)

    assert pool.run(world, whole) == pool.run(world, rest)


@pytest.mark.world(2)
def test_what_is_owed_is_not_given_to_the_wrong_parameters(pool: Any, world: int, tmp_path: Path) -> None:
    def saved() -> None:
        run = make(tmp_path, start=2)
        steps(run, 4)
        run[0].save_state()

    def loaded() -> int:
        run = make(tmp_path, start=2)
        with pytest.raises(CheckpointError, match="what each rank still owed"):
            run[0].resume()
        run[0].resume(strict=False)
        steps(run, 4)
        return run[0]._strategy.comm_state(run[1]).iter

    pool.run(world, saved)
    # Four steps from the beginning, not four more.
    assert pool.run(world, loaded) == [4, 4]
