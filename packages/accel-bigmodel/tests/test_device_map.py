"""Device maps: what lies where, and that no device is given more than it has."""

import math

import pytest
import torch
from torch import nn

from accel_bigmodel.planning import (
    check_device_map,
    clean_device_map,
    convert_file_size_to_int,
    get_balanced_memory,
    get_max_memory,
    infer_auto_device_map,
    resolve_device_map,
)
from accel_core.errors import ConfigError, UnknownNameError


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(10, 10)
        self.act = nn.ReLU()
        self.down = nn.Linear(10, 10)


class Model(nn.Module):
    """800 bytes of embedding, 200 of a bare parameter, blocks of 880 and a head of 880, 80 when tied."""

    def __init__(self, blocks=4, tied=False):
        super().__init__()
        self.embed = nn.Embedding(20, 10)
        self.position = nn.Parameter(torch.zeros(5, 10))
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(10, 20)
        if tied:
            self.head.weight = self.embed.weight


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10GiB", 10 * 2**30),
        ("10GB", 10**10),
        ("30GIB", 30 * 2**30),
        ("10gib", 10 * 2**30),
        ("1.5 GB", 1_500_000_000),
        ("8Gb", 10**9),
        ("512MiB", 2**29),
        ("1KB", 1000),
        ("1TiB", 2**40),
        ("7B", 7),
        (5, 5),
        (0, 0),
        # What transformers makes of the memory of the host.
        (0.9 * 2**34, 15_461_882_265),
        # A float would round it.
        ("999999999999999999B", 10**18 - 1),
    ],
)
def test_sizes_as_people_write_them(text, size):
    assert convert_file_size_to_int(text) == size


@pytest.mark.parametrize(
    "text", ["10", "5G", "-1GB", "GiB", "1e3GB", "", -1, True, None, -0.5, math.nan, math.inf]
)
def test_what_is_no_size(text):
    with pytest.raises(ConfigError, match="10GiB"):
        convert_file_size_to_int(text)


def test_memory_in_the_order_in_which_devices_are_filled():
    asked = {"disk": "1TB", "cpu": "1GiB", 1: 200, "0": "1KB"}
    assert list(get_max_memory(asked).items()) == [(0, 1000), (1, 200), ("cpu", 2**30), ("disk", 10**12)]


@pytest.mark.parametrize("name", ["gpu", "cpus", "cuda:x", -1, 1.5, True, None])
def test_what_is_no_device(name):
    with pytest.raises(UnknownNameError, match="device"):
        get_max_memory({name: "1GB"})


def test_the_order_of_the_model_is_kept_and_the_rest_is_offloaded():
    limits = {0: 2000 + 880, 1: 2000, "cpu": 1000}
    found = infer_auto_device_map(Model(), limits, ["Block"])
    assert found == {
        "position": 0,
        "embed": 0,
        "blocks.0": 0,
        "blocks.1": 1,
        "blocks.2": 1,
        "blocks.3": "cpu",
        "head": "disk",
    }


def test_what_lies_together_is_named_together():
    assert infer_auto_device_map(Model(), {0: 10_000}) == {"": 0}
    apart = infer_auto_device_map(Model(blocks=1), {0: 10_000}, clean_result=False)
    assert apart == dict.fromkeys(
        ["position", "embed", "blocks.0.up", "blocks.0.act", "blocks.0.down", "head"], 0
    )


def test_strategies():
    model, limits = Model(blocks=6), {0: 5000, 1: 5000, 2: 5000, "cpu": 5000}

    def loads(strategy):
        found = resolve_device_map(model, strategy, max_memory=limits, no_split_module_classes=["Block"])
        sizes = {"embed": 800, "position": 200, "head": 880, "blocks": 6 * 880}
        total = dict.fromkeys((0, 1, 2), 0)
        for name, device in found.items():
            total[device] += sizes.get(name, 880)
        return list(total.values())

    assert loads("sequential") == [1000 + 4 * 880, 3 * 880, 0]
    assert loads("auto") == loads("balanced") == [1000 + 880, 3 * 880, 3 * 880]
    assert loads("balanced_low_0") == [0, 1000 + 3 * 880, 4 * 880]


def test_limits_that_cannot_hold_the_model_are_kept():
    limits = {0: 1000, 1: 1000, "cpu": 10_000}
    assert get_balanced_memory(Model(), limits) == limits
    assert get_balanced_memory(Model(), limits, low_zero=True) == limits


def test_maps_by_hand():
    model = Model()
    whole = {"embed": 0, "position": "cpu", "blocks": "disk", "head": torch.device("cpu")}
    assert resolve_device_map(model, whole) == whole
    assert resolve_device_map(model, None) is None
    assert resolve_device_map(model, 1) == {"": 1}
    assert resolve_device_map(model, "cpu") == {"": "cpu"}
    assert resolve_device_map(model, torch.device("meta")) == {"": torch.device("meta")}
    with pytest.raises(ConfigError, match=r"no device for position, embed.weight, blocks.0.up.bias"):
        resolve_device_map(model, {"blocks.0.up.weight": 0, "blocks.0.down": 0, "head": 0})
    with pytest.raises(UnknownNameError, match="Did you mean 'head'"):
        resolve_device_map(model, {**whole, "heads": 0})
    with pytest.raises(UnknownNameError, match="Did you mean 'blocks.2'") as raised:
        resolve_device_map(model, {**whole, "block.2": 0})
    assert raised.value.known == ("blocks", "blocks.2", "embed", "head")
    with pytest.raises(UnknownNameError, match="Did you mean 'balanced'"):
        resolve_device_map(model, "balancd")
    with pytest.raises(UnknownNameError, match="Did you mean 'disk'"):
        resolve_device_map(model, {"": "disc"})
    with pytest.raises(ConfigError, match="is no device"):
        resolve_device_map(model, {"": 1.5})


def test_buffers_that_are_not_saved_need_no_name():
    model = Model()
    model.register_buffer("mask", torch.ones(3), persistent=False)
    named = {"embed": "cpu", "position": 1, "blocks": 0, "head": 0}
    check_device_map(model, named)
    assert resolve_device_map(model, named) == {**named, "mask": 1}
    model.register_buffer("saved", torch.ones(3))
    with pytest.raises(ConfigError, match="no device for saved"):
        check_device_map(model, named)


def test_clean_device_map():
    found = {"a.b": 0, "a.c": 0, "d": 1}
    assert clean_device_map(found) is found
    assert found == {"a": 0, "d": 1}
    assert clean_device_map({"a.b": 0, "c": 0}) == {"": 0}
    assert clean_device_map({"a.b.c": 0, "a.b.d": 0, "a.e": 1}) == {"a.b": 0, "a.e": 1}
    assert clean_device_map({"a.x": "cpu"}) == {"a.x": "cpu"}
    assert clean_device_map({"a.x": 0, "a.y": 0, "b.x": 0, "b.y": 1}, "a") == {"a": 0, "b.x": 0, "b.y": 1}


def test_verbose_prints_the_reasons(capsys):
    infer_auto_device_map(Model(), {0: 3000, "cpu": 10_000}, ["Block"], verbose=True)
    assert "visits 0 to run" in capsys.readouterr().out


def test_models_of_one_part_and_of_none():
    assert infer_auto_device_map(nn.Linear(2, 2), {0: 100}) == {"": 0}
    assert infer_auto_device_map(nn.Linear(2, 2), {0: 10, "cpu": 100}) == {"": "cpu"}
    assert infer_auto_device_map(nn.Linear(2, 2), {0: 10}) == {"": "disk"}
    assert infer_auto_device_map(nn.Linear(2, 2), {}) == {"": "disk"}
    assert infer_auto_device_map(nn.ReLU(), {0: 0}) == {"": 0}
    assert infer_auto_device_map(nn.Sequential(), {0: 0}) == {"": 0}
    assert infer_auto_device_map(Model(), {0: 10_000}, ["Model"]) == {"": 0}
    assert infer_auto_device_map(Model(), {0: 3000, "cpu": 10_000}, ["Model"]) == {"": "cpu"}


def test_the_model_says_what_must_not_be_split():
    model = Model()
    limits = {0: 1000 + 500 + 880, "cpu": 10_000}
    assert infer_auto_device_map(model, limits, [])["blocks.0.up"] == 0
    model._no_split_modules = ["Block"]
    assert infer_auto_device_map(model, limits)["blocks"] == "cpu"
    assert infer_auto_device_map(model, limits, [])["blocks.0.up"] == 0
    # A model inside of another one is asked too.
    whole = nn.Sequential(nn.ReLU(), type("Other", (Model,), {"_no_split_modules": {"Block"}})())
    assert infer_auto_device_map(whole, limits)["1.blocks"] == "cpu"
