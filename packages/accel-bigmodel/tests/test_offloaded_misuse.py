"""What must not pass in silence when it is done to weights that are elsewhere."""

import io
import logging

import pytest
import torch
from torch import nn

from accel_bigmodel import (
    align_module_device,
    attach_layerwise_casting_hooks,
    cpu_offload,
    dispatch_model,
    get_state_dict_offloaded_model,
    remove_hook_from_submodules,
)
from accel_bigmodel.offload import slot
from accel_core.errors import StateError
from accel_core.testing.standin.fixture import standin  # noqa: F401 - a fixture


def offloaded():
    torch.manual_seed(0)
    return cpu_offload(nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3))), "cpu")


@pytest.mark.parametrize(
    "write",
    [
        lambda weight: weight.zero_(),
        lambda weight: weight.data.mul_(2),
        lambda weight: weight.__iadd__(1),
        lambda weight: weight.__setitem__(0, 1.0),
        nn.init.zeros_,
        nn.init.kaiming_uniform_,
    ],
    ids=["zero_", "mul_", "+=", "[]", "init.zeros_", "init.kaiming_uniform_"],
)
def test_writing_to_a_placeholder_is_refused(write):
    model = offloaded()
    before = get_state_dict_offloaded_model(model)["0.weight"].clone()
    with torch.no_grad(), pytest.raises(StateError, match=r"'0.weight' is offloaded, .* write to nothing"):
        write(model[0].weight)
    with torch.no_grad(), align_module_device(model[0]):
        assert torch.equal(model[0].weight, before)
        write(model[0].weight)
    remove_hook_from_submodules(model)
    assert not torch.equal(model[0].weight, before)


def test_what_is_asked_of_placeholders_still_works():
    model = offloaded()
    weight = model[0].weight
    weight.requires_grad_(False)
    assert not weight.requires_grad
    assert weight.t().shape == (3, 3)
    assert weight.numel() == 9
    assert weight.half().dtype == torch.float16


def test_a_state_dict_of_placeholders_is_not_saved():
    model = offloaded()
    with pytest.raises(StateError, match=r"'0.weight' is offloaded, and has no data in this state dict"):
        torch.save(model.state_dict(), io.BytesIO())
    file = io.BytesIO()
    torch.save(get_state_dict_offloaded_model(model), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    remove_hook_from_submodules(model)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "move", [lambda m: m.half(), lambda m: m.to("cpu"), lambda m: m.double()], ids=["half", "to", "double"]
)
def test_a_part_is_not_cast_or_moved_either(move):
    model = offloaded()
    for part in (model, model[0], model[1], model[1][0]):
        with pytest.raises(StateError, match="a part of it is offloaded"):
            move(part)
    remove_hook_from_submodules(model)
    assert move(model[1])[0].weight.device.type == "cpu"
    assert model.half()[1][0].weight.dtype == torch.float16


def test_gradients_of_weights_are_dropped_and_that_is_said_once(caplog):
    slot._say_once.cache_clear()
    model = offloaded()
    inputs = torch.rand(2, 3, requires_grad=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            model(inputs).sum().backward()
    said = [each.message for each in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("Gradients of offloaded weights are dropped: such a model is not trained.")
    assert inputs.grad is not None
    with align_module_device(model[0]):
        assert model[0].weight.grad is None
    remove_hook_from_submodules(model)
    model(inputs).sum().backward()
    assert all(each.grad is not None for each in model.parameters())


def test_frozen_weights_need_no_warning(caplog):
    slot._say_once.cache_clear()
    model = offloaded().requires_grad_(False)
    inputs = torch.rand(2, 3, requires_grad=True)
    model(inputs).sum().backward()
    assert not caplog.records
    assert inputs.grad is not None


def test_a_layer_is_not_cast_and_offloaded_at_once():
    model = offloaded()
    inputs = torch.rand(2, 3)
    expected = model(inputs)
    with pytest.raises(StateError, match="cannot be offloaded and keep its weights in a narrow dtype"):
        attach_layerwise_casting_hooks(model, torch.bfloat16, torch.float32)
    assert torch.equal(model(inputs), expected)
    remove_hook_from_submodules(model)
    attach_layerwise_casting_hooks(model, torch.bfloat16, torch.float32)
    cpu_offload(model, "cpu")
    with pytest.raises(StateError, match="cannot be offloaded and keep its weights in a narrow dtype"):
        model(inputs)


def in_inference_mode():
    """Spread a model inside of inference mode, and train it outside; return what has gradients."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    inputs = torch.rand(4, 3)
    with torch.inference_mode():
        dispatch_model(model, {"0": "standin:0", "1": "cpu", "2": "cpu"})
        model(inputs)
    model.eval()(inputs.clone().requires_grad_()).sum().backward()
    model[0].weight.grad = None
    remove_hook_from_submodules(model)
    model.to("standin:0")
    model(inputs.to("standin:0")).sum().backward()
    return [each.grad is not None for each in model.parameters()]


def test_dispatched_inside_of_inference_mode_and_used_outside(standin):  # noqa: F811
    assert standin.run(1, in_inference_mode) == [[True] * 6]
