"""Models that were dispatched, given to an ``Accelerator``."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from accel import Accelerator, cpu_offload, disk_offload, dispatch_model
from accel_core.errors import PrepareError
from accel_state import process

pytestmark = pytest.mark.cpu


@pytest.fixture(autouse=True)
def fresh():
    process.reset()
    yield
    process.reset()


def offloaded(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).eval()
    model[2].weight = model[0].weight
    x = torch.randn(2, 4)
    with torch.no_grad():
        wanted = model(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    dispatch_model(model, {"0": "disk", "1": "cpu", "2": "disk"}, offload_dir=tmp_path / "away")
    assert model[0].weight.is_meta
    return model, x, wanted, state


def test_a_model_on_the_disk_computes_when_it_is_prepared(tmp_path):
    model, x, wanted, _ = offloaded(tmp_path)
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    assert torch.equal(prepared(x), wanted)
    assert accelerator.verify_device_map(model)
    assert not accelerator.verify_device_map(nn.Linear(1, 1))


def test_an_optimizer_of_weights_that_are_not_there_is_refused(tmp_path):
    model, *_ = offloaded(tmp_path)
    with pytest.raises(PrepareError, match="offloaded: its optimizer has nothing to change"):
        Accelerator(cpu=True).prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))


def test_it_is_saved_from_where_its_weights_lie(tmp_path):
    model, _, _, state = offloaded(tmp_path)
    accelerator = Accelerator(cpu=True)
    accelerator.save_model(accelerator.prepare(model), tmp_path / "new")
    assert model[0].weight.is_meta
    found = load_file(tmp_path / "new" / "model.safetensors")
    # Tied weights are written once.
    assert found.keys() == state.keys() - {"2.weight"}
    assert all(torch.equal(found[name], state[name]) for name in found)
    other = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    accelerator.load_model(other, tmp_path / "new")
    assert all(torch.equal(other.state_dict()[name], state[name]) for name in state)


def test_a_state_dict_of_an_offloaded_model_has_its_values(tmp_path):
    model, _, _, state = offloaded(tmp_path)
    found = Accelerator(cpu=True).get_state_dict(model)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_weights_that_were_never_loaded_are_still_refused():
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(PrepareError, match="on the meta device"):
        Accelerator(cpu=True).prepare(model)


def test_one_device_is_not_several():
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(2, 2)
    assert not accelerator.verify_device_map(dispatch_model(model, {"": "cpu"}))
    assert not accelerator.verify_device_map(cpu_offload(nn.Linear(2, 2)))


@pytest.mark.world(1, 2)
def test_every_process_computes_with_a_model_that_is_offloaded(pool, world, tmp_path):
    def run() -> list[bool]:
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        inputs = torch.randn(2, 4)
        equal = []
        for number in range(3):
            model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
            wanted = model(inputs)
            folder = tmp_path / f"{number}-{accelerator.process_index}"
            if number == 0:
                model = cpu_offload(model, "cpu")
            elif number == 1:
                model = disk_offload(model, folder, "cpu")
            else:
                model = dispatch_model(model, {"0": "disk", "2": "cpu"}, offload_dir=folder)
            equal.append(torch.equal(accelerator.prepare(model)(inputs), wanted))
        return equal

    assert pool.run(world, run) == [[True] * 3] * world
