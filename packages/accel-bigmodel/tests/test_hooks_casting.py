"""Layers that are stored in a narrow dtype; hooks and compiled graphs."""

import copy

import pytest
import torch
from torch import nn

from accel_bigmodel import (
    attach_execution_device_hook,
    attach_layerwise_casting_hooks,
    cpu_offload,
    remove_hook_from_submodules,
)


def test_layers_stored_in_a_narrow_dtype():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 5)
    )
    model[4].weight = model[0].weight
    rounded = copy.deepcopy(model)
    for index in (1,):
        for parameter in rounded[index].parameters():
            parameter.data = parameter.data.to(torch.float8_e4m3fn).float()
    attach_layerwise_casting_hooks(model, torch.float8_e4m3fn, torch.float32, skip_modules_pattern=["^3$"])
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float8_e4m3fn} == {"1.weight", "1.bias"}
    ids = torch.tensor([[0, 3]])
    for _ in range(2):
        assert torch.equal(model(ids), rounded(ids))
    assert model[1].weight.dtype == torch.float8_e4m3fn
    with pytest.raises(IndexError):
        model(torch.tensor([9]))
    with pytest.raises(RuntimeError):
        model[1](torch.ones(3))
    assert model[1].weight.dtype == torch.float8_e4m3fn
    other = copy.deepcopy(model)
    assert torch.equal(other(ids), rounded(ids))
    remove_hook_from_submodules(model)
    assert torch.equal(model(ids), rounded(ids))


def test_narrow_layers_may_learn():
    layer = nn.Linear(2, 2)
    attach_layerwise_casting_hooks(layer, torch.bfloat16, torch.float32, skip_modules_classes=(nn.Conv1d,))
    layer(torch.ones(1, 2)).sum().backward()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.bfloat16
    assert torch.equal(layer.weight.grad, torch.ones(2, 2, dtype=torch.bfloat16))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_compiled_models_keep_their_hooks():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.scale = nn.Parameter(torch.randn(3))

        def forward(self, x):
            return x + torch.tanh(self.linear(x)) * self.scale

    model = nn.Sequential(Residual(), Residual()).eval()
    x = torch.randn(2, 3)
    expected = model(x)
    cpu_offload(model)
    compiled = torch.compile(model, backend="eager")
    for _ in range(3):
        assert torch.equal(compiled(x), expected)
    assert {each.device.type for each in model.parameters()} == {"meta"}
    torch.compiler.reset()
    remove_hook_from_submodules(model)
    attach_execution_device_hook(model, "cpu")
    # Hooks that only move inputs are no reason to leave the graph.
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
    torch.compiler.reset()
