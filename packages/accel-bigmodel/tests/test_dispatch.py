"""Dispatched models compute what they computed before, bit by bit, wherever their weights are."""

import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from accel_bigmodel import (
    dispatch_model,
    remove_hook_from_submodules,
)
from accel_bigmodel.aligning import DispatchedTensors
from accel_bigmodel.planning.resolve import main_of
from accel_core.testing.standin.fixture import standin  # noqa: F401 - a fixture

WIDTH = 4


class Mixed(nn.Module):
    """Weights and buffers beside modules, and a residual connection."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("shift", torch.randn(WIDTH))
        self.register_buffer("unsaved", torch.randn(WIDTH), persistent=False)
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.GELU())

    def forward(self, x):
        return x + self.inner(self.linear(x)) * self.scale + self.shift * self.unsaved


class Norm(nn.BatchNorm1d):
    def __init__(self):
        super().__init__(WIDTH)
        self.running_mean += torch.randn(WIDTH)

    def forward(self, x):
        return super().forward(x.flatten(0, -2)).view_as(x)


class Attention(nn.Module):
    """Forward uses weights of a module inside without calling it."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    """Its weights are also in a list that is no table of parameters."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(WIDTH, WIDTH)

    def forward(self, x):
        return self.rnn(x)[0]


class Twice(nn.Module):
    """A module that is called twice, once inside of the same call of another."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, depth=2):
        x = self.linear(x)
        return self(x, depth=depth - 1) if depth else torch.tanh(x)


BLOCKS = [Mixed, Norm, Attention, Recurrent, Twice]


class Net(nn.Module):
    """Blocks between two embeddings that are one tensor; the last block may be the first one again."""

    def __init__(self, blocks, *, own=False, again=False, tied=True):
        super().__init__()
        self.embed = nn.Embedding(7, WIDTH)
        self.blocks = nn.ModuleList([block() for block in blocks])
        if again:
            self.blocks.append(self.blocks[0])
        self.head = nn.Linear(WIDTH, 7)
        if tied:
            self.head.weight = self.embed.weight
        if own:
            self.bias = nn.Parameter(torch.randn(7))

    def forward(self, ids, mask=None):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x) if mask is None else block(x) * mask.to(x.device)
        x = self.head(x)
        return x + self.bias if hasattr(self, "bias") else x


def any_net(choose):
    torch.manual_seed(choose(list(range(1000))))
    blocks = [choose(BLOCKS) for _ in range(choose([1, 2, 3, 4]))]
    flags = [choose([True, False]) for _ in range(3)]
    return Net(blocks, own=flags[0], again=flags[1], tied=flags[2]).eval()


def any_map(model, places, choose):
    """Return a device map of any grain: what has weights beside modules may be taken apart, too."""
    found = {}

    def place(module, name):
        apart = isinstance(module, (Net, nn.ModuleList, Mixed))
        if not apart or choose([False, True, True]) is False:
            found[name] = choose(places)
            return
        tables = [*module._parameters, *module._buffers]
        found.update({f"{name}.{key}" if name else key: choose(places) for key in tables})
        # Also under its other names.
        for key, child in module._modules.items():
            place(child, f"{name}.{key}" if name else key)

    place(model, "")
    return found


def answers(model, x, **arguments):
    with torch.no_grad():
        return [model(x, **arguments), model(x, **arguments)]


def same(model, x, expected, **arguments):
    return all(
        torch.equal(each, expected) and each.device == x.device for each in answers(model, x, **arguments)
    )


def check(model, places, choose, folder):
    """Dispatch ``model`` anyhow, compare its answers, take it back, and compare them again."""
    x = torch.tensor([[0, 1, 2], [3, 4, 5]])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tied = model.head.weight is model.embed.weight
    device_map = any_map(model, places, choose)
    buffers = choose([True, False])
    # Another device has other kernels; all parts compute on devices of one kind here.
    main = main_of(device_map)
    expected = answers(copy.deepcopy(model).to(main), x.to(main))[0].cpu()
    dispatched = dispatch_model(
        model,
        device_map,
        offload_dir=folder if "disk" in device_map.values() else None,
        offload_buffers=buffers,
        force_hooks=choose([True, False]),
    )
    note = f"{[type(block).__name__ for block in model.blocks]} {device_map} buffers={buffers}"
    assert dispatched is model, note
    if hasattr(model, "_hf_hook"):
        assert same(model, x, expected), note
    else:
        # All of it on one device, without hooks: inputs have to be there.
        assert all(torch.equal(each.cpu(), expected) for each in answers(model, x.to(main))), note
    read = DispatchedTensors(model)
    assert set(read) == set(state)
    assert all(torch.equal(read[name].cpu(), state[name]) for name in state), note
    remove_hook_from_submodules(model)
    assert all(tensor.device.type != "meta" for tensor in [*model.parameters(), *model.buffers()]), note
    if model.head.weight.device == model.embed.weight.device:
        assert (model.head.weight is model.embed.weight) == tied, note
    assert all(torch.equal(each.cpu(), expected) for each in answers(model.to(main), x.to(main))), note


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_model_any_map_on_the_cpu(data, tmp_path_factory):
    def choose(options):
        return data.draw(st.sampled_from(list(options)))

    model = any_net(choose)
    check(model, ["cpu", "disk"], choose, tmp_path_factory.mktemp("disk"))


def run_on_devices(places, seeds, folder):
    for seed in seeds:
        choose = random.Random(seed).choice
        try:
            check(any_net(choose), places, choose, f"{folder}/{seed}")
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    return len(seeds)


def test_any_model_any_map_on_devices(standin, tmp_path):  # noqa: F811
    places = ["standin:0", "standin:1", 1, "cpu", "disk"]
    assert standin.run(1, run_on_devices, places, range(60), str(tmp_path)) == [60]


@pytest.mark.gpu
def test_any_model_any_map_on_a_gpu(tmp_path):
    count = torch.accelerator.device_count()
    assert run_on_devices([*range(count), "cpu", "disk"], range(40), str(tmp_path)) == 40
