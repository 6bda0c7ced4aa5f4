"""The state of models whose weights lie elsewhere, and the memory that using them takes."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from accel_bigmodel import dispatch_model, get_state_dict_offloaded_model, init_empty_weights, offloaded_state
from accel_bigmodel.offload.folder import offload_state_dict


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.norm(self.embed(x)))


def test_the_whole_state_by_name(tmp_path):
    torch.manual_seed(0)
    plain = Net().eval()
    offload_state_dict(tmp_path, plain.state_dict())
    with init_empty_weights():
        model = Net().eval()
    places = {"embed": "disk", "head": "disk", "norm": "disk"}
    dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, offload_buffers=True)
    state = offloaded_state(model)
    expected = plain.state_dict()
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert state["embed.weight"].data_ptr() == state["head.weight"].data_ptr()
    found = get_state_dict_offloaded_model(model)
    assert type(found) is dict
    assert list(found) == list(expected)
    # Asking changes nothing.
    assert model.head.weight.device.type == "meta"
    ids = torch.tensor([[0], [3]])[:, 0]
    assert torch.equal(model(ids), plain(ids))


def test_what_a_forward_changed_is_in_it(tmp_path):
    torch.manual_seed(0)
    plain, model = nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.BatchNorm1d(3))
    save_file(plain.state_dict(), tmp_path / "model.safetensors")
    path = str(tmp_path / "model.safetensors")
    index = {
        name: {"safetensors_file": path, "weight_name": name, "dtype": str(value.dtype)}
        for name, value in plain.state_dict().items()
    }
    dispatch_model(model, {"": "disk"}, main_device="cpu", offload_index=index, offload_buffers=True)
    for _ in range(2):
        x = torch.randn(5, 3)
        assert torch.equal(model(x), plain(x))
    state = offloaded_state(model)
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps_rollup")
def test_memory_of_a_model_on_disk_stays_that_of_nothing(pool, tmp_path):
    """Memory does not grow by the 64 MiB of weights: pages of files are the system's, to drop."""

    def own():
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous"))

    def run(options):
        with init_empty_weights():
            model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(16))).eval()
        x = torch.ones(1, 1024)
        with torch.inference_mode():
            nn.Linear(1024, 1024)(x)
            before = own()
            dispatch_model(model, {"": "disk"}, main_device="cpu", **options)
            for _ in range(3):
                model(x)
            return own() - before

    plain = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(16)))
    save_file(plain.state_dict(), tmp_path / "model.safetensors")
    offload_state_dict(tmp_path, plain.state_dict())
    path = str(tmp_path / "model.safetensors")
    index = {name: {"safetensors_file": path, "weight_name": name} for name in plain.state_dict()}
    for options in ({"offload_dir": tmp_path}, {"offload_index": index}):
        # KiB; a copy of a single layer is 4,100.
        assert pool.run(1, run, options)[0] < 4000
