"""Modules under several names, tied weights in several places, copies of models with parts elsewhere."""

import copy
import pickle
import tempfile

import pytest
import torch
from torch import nn

from accel_bigmodel import (
    cpu_offload,
    dispatch_model,
    find_tied_parameters,
    init_empty_weights,
    load_checkpoint_and_dispatch,
    load_checkpoint_in_model,
    remove_hook_from_submodules,
)
from accel_core.testing.standin.fixture import standin  # noqa: F401 - a fixture

safetensors = pytest.importorskip("safetensors.torch")


class Model(nn.Module):
    """One module under two names, and two layers that share their weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(4, 4)
        self.right.weight = self.left.weight

    def forward(self, inputs):
        return self.right(self.left(self.again(self.first(inputs))))


def skeleton():
    with init_empty_weights():
        return Model()


def saved(folder):
    torch.manual_seed(0)
    real = Model()
    state = {name: value.clone() for name, value in real.state_dict().items()}
    safetensors.save_file(
        {name: value for name, value in state.items() if "again" not in name and name != "right.weight"},
        folder / "model.safetensors",
    )
    return real, folder


MAPS = [
    {"": "disk"},
    {"first": "cpu", "again": "disk", "left": "disk", "right": "cpu"},
    {"first": "disk", "again": "cpu", "left": "cpu", "right": "disk"},
    {"first": "disk", "left": "cpu", "right": "cpu"},
]


@pytest.mark.parametrize("way", ["at once", "in two steps", "from memory"])
@pytest.mark.parametrize("device_map", MAPS)
def test_shared_modules_and_tied_weights_in_several_places(tmp_path, device_map, way):
    real, folder = saved(tmp_path)
    inputs = torch.rand(3, 4)
    expected = real(inputs)
    if "again" not in device_map and "" not in device_map:
        device_map = {**device_map, "again": "disk"}
    if way == "at once":
        model = load_checkpoint_and_dispatch(skeleton(), folder, device_map)
    elif way == "in two steps":
        model = skeleton()
        load_checkpoint_in_model(model, folder, device_map)
        model = dispatch_model(model, device_map)
    else:
        model = dispatch_model(copy.deepcopy(real), device_map, offload_dir=tmp_path / "away")
    assert torch.equal(model(inputs), expected)
    remove_hook_from_submodules(model)
    assert model.first is model.again
    assert find_tied_parameters(model) == find_tied_parameters(real)
    model(inputs).sum().backward()
    real(inputs).sum().backward()
    for one, other in zip(model.parameters(), real.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_a_weight_that_is_tied_to_one_in_memory_needs_no_folder(tmp_path):
    real, _ = saved(tmp_path)
    model = dispatch_model(
        copy.deepcopy(real),
        {"first": "cpu", "left": "cpu", "right.weight": "disk"}
        | {
            "right.bias": "cpu",
            "again": "cpu",
        },
    )
    inputs = torch.rand(3, 4)
    assert torch.equal(model(inputs), real(inputs))


@pytest.mark.parametrize("kind", ["deepcopy", "pickle"])
def test_copies_of_models_whose_weights_are_in_a_checkpoint(tmp_path, kind):
    real, folder = saved(tmp_path)
    model = load_checkpoint_and_dispatch(skeleton(), folder, {"": "disk"})
    inputs = torch.rand(3, 4)
    model(inputs)
    other = copy.deepcopy(model) if kind == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert len(pickle.dumps(model)) < 100_000
    for each in (other, model):
        assert torch.equal(each(inputs), real(inputs))
    remove_hook_from_submodules(other)
    assert not any(each.is_meta for each in other.parameters())
    assert all(each.is_meta for each in model.parameters())


class Fused(nn.Linear):
    """Makes its weight of two that older versions saved."""

    def __init__(self):
        super().__init__(2, 4, bias=False)
        self._register_load_state_dict_pre_hook(self.fuse)

    def fuse(self, state, prefix, *_):
        state[f"{prefix}weight"] = torch.cat([state.pop(f"{prefix}up"), state.pop(f"{prefix}down")])


@pytest.mark.parametrize("steps", [1, 2])
def test_some_weights_in_the_files_of_the_checkpoint_and_some_in_copies(tmp_path, steps):
    torch.manual_seed(0)
    state = {"0.up": torch.rand(2, 2), "0.down": torch.rand(2, 2), "1.weight": torch.rand(2, 4)}
    state["1.bias"] = torch.rand(2)
    safetensors.save_file(state, tmp_path / "model.safetensors")
    with init_empty_weights():
        model = nn.Sequential(Fused(), nn.Linear(4, 2))
    away = tmp_path / "away"
    if steps == 1:
        model = load_checkpoint_and_dispatch(model, tmp_path, {"": "disk"}, offload_folder=away)
    else:
        load_checkpoint_in_model(model, tmp_path, {"": "disk"}, offload_folder=away)
        model = dispatch_model(model, {"": "disk"}, offload_dir=away)
    inputs = torch.rand(3, 2)
    hidden = inputs @ torch.cat([state["0.up"], state["0.down"]]).T
    assert torch.allclose(model(inputs), hidden @ state["1.weight"].T + state["1.bias"])
    assert [each.name for each in away.iterdir() if each.suffix == ".dat"] == ["0.weight.dat"]


@pytest.mark.parametrize("device_map", MAPS)
def test_files_of_torch_in_two_steps(tmp_path, device_map):
    real, folder = saved(tmp_path)
    state = safetensors.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    # Tied weights under the name that comes last.
    state["right.weight"] = state.pop("left.weight")
    torch.save(state, folder / "pytorch_model.bin")
    if "again" not in device_map and "" not in device_map:
        device_map = {**device_map, "again": "disk"}
    model = skeleton()
    load_checkpoint_in_model(model, folder, device_map, offload_folder=tmp_path / "away")
    model = dispatch_model(model, device_map, offload_dir=tmp_path / "away")
    inputs = torch.rand(3, 4)
    assert torch.equal(model(inputs), real(inputs))


class Outer(nn.Module):
    """Uses a weight of what is inside without calling it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, inputs):
        return self.inner(inputs) @ self.inner.weight


@pytest.mark.parametrize("first", ["outer", "inner"])
def test_a_module_that_is_used_inside_of_a_whole_one_and_outside(first):
    torch.manual_seed(0)
    inner = nn.Linear(4, 4)
    parts = [Outer(inner), inner] if first == "outer" else [inner, Outer(inner)]
    model = nn.Sequential(*parts)
    inputs = torch.rand(2, 4)
    expected = model(inputs)
    model = cpu_offload(model, "cpu", preload_module_classes=["Outer"])
    for _ in range(2):
        assert torch.equal(model(inputs), expected)
        assert inner.weight.is_meta
    remove_hook_from_submodules(model)
    assert torch.equal(model(inputs), expected)


class Listing(nn.Module):
    """Parameters in containers that nobody calls."""

    def __init__(self):
        super().__init__()
        self.several = nn.ParameterList([torch.rand(4, 4), torch.rand(4)])
        self.inner = nn.ModuleDict({"named": nn.ParameterDict({"scale": torch.rand(4)})})

    def forward(self, inputs):
        return (inputs @ self.several[0] + self.several[1]) * self.inner["named"]["scale"]


def containers():
    """Compute with parameters in containers in places of their own; return what is wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Listing(), nn.Linear(4, 4))
    inputs = torch.rand(2, 4)
    expected = model(inputs)
    wrong = []
    for several in ("standin:0", "standin:1", "cpu", "disk"):
        for named in ("standin:0", "standin:1", "cpu"):
            places = {"1.several": several, "1.inner": named, "0": "standin:0", "2": "standin:1"}
            with tempfile.TemporaryDirectory() as away:
                found = dispatch_model(copy.deepcopy(model), places, offload_dir=away)(inputs)
            if not torch.allclose(found.cpu(), expected):
                wrong.append(places)
    return wrong


def test_containers_lie_where_the_module_that_uses_them_computes(standin):  # noqa: F811
    assert standin.run(1, containers) == [[]]
