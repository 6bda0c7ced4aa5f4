"""Going on from a folder of pickles that another library wrote, without running them."""

from __future__ import annotations

import os
import pickle
import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from accel import Accelerator
from accel_core.errors import CheckpointError
from accel_state import process


@pytest.fixture(autouse=True)
def fresh():
    process.reset()
    yield
    process.reset()


class Counter:
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def plain(seed):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)


def train(model, optimizer, scheduler, backward):
    for _ in range(3):
        backward(model(torch.randn(4, 3)).pow(2).mean())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return [each.tolist() for each in model.parameters()], scheduler.get_last_lr()


def write(folder, model, optimizer, scheduler):
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.bin")
    torch.save(scheduler.state_dict(), folder / "scheduler.bin")
    torch.save({"value": 5}, folder / "custom_checkpoint_0.pkl")
    states = {
        "step": 3,
        "random_state": random.getstate(),
        "numpy_random_seed": np.random.get_state(),
        "torch_manual_seed": torch.get_rng_state(),
    }
    torch.save(states, folder / "random_states_0.pkl")


def loaded(folder, **options):
    accelerator = Accelerator(cpu=True)
    parts = accelerator.prepare(*plain(7))
    custom = Counter(0)
    accelerator.register_for_checkpointing(custom)
    return accelerator, parts, custom, accelerator.load_state(folder, legacy=True, **options)


def test_a_run_of_plain_torch_goes_on(tmp_path):
    parts = plain(1)
    train(*parts, torch.Tensor.backward)
    write(tmp_path / "old", *parts)
    wanted = train(*parts, torch.Tensor.backward)
    accelerator, parts, custom, report = loaded(tmp_path / "old")
    assert report.ok
    assert custom.value == 5
    assert train(*parts, accelerator.backward) == wanted


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_a_bomb_does_not_go_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "old", *plain(1))
    (tmp_path / "old" / "optimizer.bin").write_bytes(pickle.dumps(Bomb()))
    torch.save(Bomb(), tmp_path / "old" / "custom_checkpoint_0.pkl")
    with pytest.raises(CheckpointError, match="does not fit this run") as caught:
        loaded(tmp_path / "old")
    assert "optimizer.bin" in caught.value.where
    assert not (tmp_path / "exploded").exists()
    process.reset()
    *_, custom, report = loaded(tmp_path / "old", strict=False)
    assert custom.value == 0
    assert {"optimizer_0", "custom_checkpoint_0"} <= set(report.missing)
    assert not (tmp_path / "exploded").exists()


def test_without_the_flag_it_is_not_read(tmp_path):
    write(tmp_path / "old", *plain(1))
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(*plain(2))
    with pytest.raises(CheckpointError, match="not a committed checkpoint"):
        accelerator.load_state(tmp_path / "old")
    with pytest.raises(CheckpointError, match="no folder"):
        accelerator.load_state(legacy=True)


def test_other_counts_are_refused(tmp_path):
    write(tmp_path / "old", *plain(1))
    accelerator = Accelerator(cpu=True)
    model, optimizer, _ = plain(2)
    accelerator.prepare(model, nn.Linear(2, 2), optimizer)
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        accelerator.load_state(tmp_path / "old", legacy=True)
    assert "not in the folder: model_1" in caught.value.where
    assert "only in the folder: scheduler_0, custom_checkpoint_0" in caught.value.where


def test_all_models_are_looked_at_before_one_is_changed(tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    save_file({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, folder / "model.safetensors")
    save_file({"weight": torch.ones(9, 9), "bias": torch.ones(9)}, folder / "model_1.safetensors")
    accelerator = Accelerator(cpu=True)
    first, second = accelerator.prepare(nn.Linear(3, 2), nn.Linear(3, 2))
    before = [each.clone() for each in (*first.parameters(), *second.parameters())]
    with pytest.raises(CheckpointError, match="nothing was changed"):
        accelerator.load_state(folder, legacy=True)
    assert all(map(torch.equal, before, (*first.parameters(), *second.parameters())))
