"""Models that were dispatched, given to an ``Accelerator``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from accel import Accelerator, cpu_offload, dispatch_model
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
