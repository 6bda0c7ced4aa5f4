"""Single tensors of modules: moved, replaced, tied."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from accel_bigmodel import (
    extract_submodules_state_dict,
    init_empty_weights,
    named_module_tensors,
    retie_parameters,
    set_module_tensor_to_device,
)
from accel_core.errors import CheckpointError, UnknownNameError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.own = nn.Parameter(torch.randn(2))
        self.register_buffer("saved", torch.randn(2))
        self.register_buffer("unsaved", torch.randn(2), persistent=False)


def test_names_of_tensors():
    net = Net()
    net.inner[1].register_buffer("mask", torch.ones(3), persistent=False)
    assert [name for name, _ in named_module_tensors(net)] == ["own", "saved", "unsaved"]
    assert [name for name, _ in named_module_tensors(net, include_buffers=False)] == ["own"]
    assert [name for name, _ in named_module_tensors(net, remove_non_persistent=True)] == ["own", "saved"]
    everything = dict(named_module_tensors(net, recurse=True))
    assert set(everything) == {*net.state_dict(), "unsaved", "inner.1.mask"}
    assert set(dict(named_module_tensors(net, recurse=True, remove_non_persistent=True))) == set(
        net.state_dict()
    )
    assert everything["inner.0.weight"] is net.inner[0].weight


class Own(nn.Parameter):
    pass


def test_a_tensor_is_moved_as_it_is():
    net = Net()
    net.inner[0].weight = Own(torch.ones(3, 2), requires_grad=False)
    net.inner[0].weight.note = 7
    set_module_tensor_to_device(net, "inner.0.weight", "meta")
    moved = net.inner[0].weight
    assert (type(moved), moved.requires_grad, moved.note, moved.device.type) == (Own, False, 7, "meta")
    set_module_tensor_to_device(net, "inner.1.running_mean", "meta")
    assert net.inner[1].running_mean.device.type == "meta"
    assert not isinstance(net.inner[1].running_mean, nn.Parameter)
    there = net.own
    set_module_tensor_to_device(net, "own", "cpu")
    assert net.own is there


def test_a_value_takes_the_dtype_that_the_tensor_has():
    net = Net()
    net.own.requires_grad_(False)
    set_module_tensor_to_device(net, "own", "cpu", value=torch.ones(2, dtype=torch.float64))
    assert net.own.dtype == torch.float32
    assert isinstance(net.own, nn.Parameter)
    assert not net.own.requires_grad
    set_module_tensor_to_device(net, "own", "cpu", value=torch.tensor([1, 2]))
    assert torch.equal(net.own, torch.tensor([1.0, 2.0]))
    set_module_tensor_to_device(net, "own", "cpu", value=torch.ones(2), dtype="float16")
    assert net.own.dtype == torch.float16
    set_module_tensor_to_device(net, "saved", "cpu", value=torch.ones(2), dtype=torch.bfloat16)
    assert net.saved.dtype == torch.bfloat16
    set_module_tensor_to_device(net, "saved", "cpu", dtype=torch.float64)
    assert net.saved.dtype == torch.float64


def test_integers_stay_integers_when_a_dtype_is_named():
    net = Net()
    set_module_tensor_to_device(net, "own", "cpu", value=torch.tensor([1, 2]), dtype=torch.float16)
    assert net.own.dtype == torch.int64
    assert not net.own.requires_grad
    set_module_tensor_to_device(net, "inner.1.num_batches_tracked", "cpu", dtype=torch.float16)
    assert net.inner[1].num_batches_tracked.dtype == torch.int64


def test_a_skeleton_is_filled():
    with init_empty_weights(include_buffers=True):
        net = Net()
    whole = Net()
    for name, value in named_module_tensors(whole, recurse=True):
        set_module_tensor_to_device(net, name, "cpu", value=value)
    for name, value in named_module_tensors(net, recurse=True):
        assert torch.equal(
            value,
            whole.get_parameter(name)
            if "." not in name and name == "own"
            else (dict(named_module_tensors(whole, recurse=True))[name]),
        )
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_statistics_of_weights_in_8_bits():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = Own(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    scales = torch.ones(2)
    value = torch.ones(2, 2, dtype=torch.int8)
    set_module_tensor_to_device(layer, "weight", "cpu", value=value, fp16_statistics=scales)
    assert torch.equal(layer.weight.SCB, scales)
    assert layer.weight.dtype == torch.int8


def test_what_is_tied_is_moved_once():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    known = {first.weight.data_ptr(): {}}
    for layer in (first, second):
        set_module_tensor_to_device(layer, "weight", "meta", tied_params_map=known)
    assert first.weight is second.weight
    assert first.weight.device.type == "meta"


def test_recurrent_modules_follow():
    module = nn.GRU(2, 2)
    set_module_tensor_to_device(module, "weight_ih_l0", "cpu", value=torch.zeros(6, 2))
    assert module._flat_weights[0] is module.weight_ih_l0


@pytest.mark.parametrize(
    ("name", "arguments", "error", "text"),
    [
        ("inner.0.wieght", {}, UnknownNameError, "inner.0.weight"),
        ("iner.0.weight", {}, UnknownNameError, "inner.0.weight"),
        ("inner", {}, UnknownNameError, "Unknown tensor of Net 'inner'"),
        ("own", {"value": torch.ones(3)}, ValueError, r"'own' has shape \(2,\), its new value \(3,\)"),
        ("own", {"value": torch.ones(2), "dtype": "float61"}, UnknownNameError, "float64"),
        ("own", {"value": torch.ones(2, device="meta")}, CheckpointError, "'own' has no data"),
    ],
)
def test_what_cannot_be_set(name, arguments, error, text):
    net = Net()
    before = dict(net.state_dict())
    with pytest.raises(error, match=text):
        set_module_tensor_to_device(net, name, "cpu", **arguments)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_module_does_not_get_what_it_does_without():
    layer = nn.Linear(2, 3, bias=False)
    set_module_tensor_to_device(layer, "bias", "cpu")
    with pytest.raises(ValueError, match="'bias' is None in this Linear"):
        set_module_tensor_to_device(layer, "bias", "cpu", value=torch.ones(3))
    assert layer.bias is None


def test_no_data():
    with init_empty_weights():
        net = Net()
    with pytest.raises(CheckpointError, match="'own' has no data, so that it cannot be put on cpu"):
        set_module_tensor_to_device(net, "own", "cpu")


def test_tied_again():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.GRU(2, 2))
    with init_empty_weights():
        net[0].weight = nn.Parameter(net[0].weight)
    with_data = net[1].weight
    retie_parameters(net, [["0.weight", "1.weight"], ["2.bias_ih_l0", "2.bias_hh_l0"]])
    assert net[0].weight is net[1].weight is with_data
    assert net[2].bias_ih_l0 is net[2].bias_hh_l0 is net[2]._flat_weights[3]
    with pytest.raises(UnknownNameError, match=r"1\.wegiht"):
        retie_parameters(net, [["0.weight", "1.wegiht"]])
    retie_parameters(net, [])


@given(st.lists(st.sampled_from(["a", "a.b", "a.bc", "ab.c", "d", "a.b.c"]), unique=True))
def test_parts_of_a_state_dict(names):
    state = {name: torch.ones(1) for name in names}
    found = extract_submodules_state_dict(state, ["a.b", "d"])
    assert list(found) == [name for name in names if name in {"a.b", "a.b.c", "d"}]
    assert all(found[name] is state[name] for name in found)
    assert extract_submodules_state_dict(state, [""]) == state
    assert extract_submodules_state_dict(state, []) == {}
