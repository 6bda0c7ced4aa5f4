"""Folders of offloaded weights: what is written comes back, and what is wrong is said."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from accel_bigmodel import (
    OffloadedWeightsLoader,
    PrefixedDataset,
    load_offloaded_weight,
    load_offloaded_weights,
    offload_state_dict,
    offload_weight,
    save_offload_index,
)
from accel_core.errors import CheckpointError, ConfigError

DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
]


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Tell whether dtype, shape and every bit agree; NaN has many."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    first, second = (each.detach().contiguous().reshape(-1).view(torch.uint8) for each in (left, right))
    return torch.equal(first, second)


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    count = int(torch.Size(shape).numel())
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if dtype == torch.bool:
        raw = bytes(each & 1 for each in raw)
    flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    value = flat.reshape(shape)
    return value.transpose(0, -1) if draw(st.booleans()) and value.dim() else value


NAMES = st.from_regex(r"[a-z0-9_ ]{1,8}([./][a-z0-9_]{1,8}){0,3}", fullmatch=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, tensors(), max_size=5))
@example({"a.weight": torch.tensor(1.5, dtype=torch.bfloat16), "empty": torch.empty(0, 3)})
def test_every_bit_comes_back(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("offloaded")
    offload_state_dict(folder, weights)
    if not weights:
        assert list(folder.iterdir()) == []
        return
    found = OffloadedWeightsLoader(save_folder=folder)
    assert list(found) == list(weights)
    assert all(same(found[name], value) for name, value in weights.items())


def test_the_format_is_the_documented_one(tmp_path):
    weights = {
        "layer.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "scale": torch.tensor(1.5, dtype=torch.bfloat16),
        "none": torch.empty(0, 2),
    }
    offload_state_dict(tmp_path, weights)
    assert json.loads((tmp_path / "index.json").read_text()) == {
        "layer.weight": {"dtype": "float32", "shape": [2, 2]},
        "scale": {"dtype": "bfloat16", "shape": []},
        "none": {"dtype": "float32", "shape": [0, 2]},
    }
    assert (tmp_path / "layer.weight.dat").read_bytes() == struct.pack("<4f", 1, 2, 3, 4)
    assert (tmp_path / "scale.dat").read_bytes() == b"\xc0\x3f"
    # Not empty: others map it too.
    assert (tmp_path / "none.dat").read_bytes() == b"\0"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.json",
        "layer.weight.dat",
        "none.dat",
        "scale.dat",
    ]


def test_a_weight_is_described_in_the_index_that_is_given(tmp_path):
    index: dict = {}
    assert offload_weight(torch.ones(2), "a", tmp_path, index) is index
    assert offload_weight(nn.Parameter(torch.ones(3)), "b", tmp_path, index) is index
    assert index == {"a": {"dtype": "float32", "shape": [2]}, "b": {"dtype": "float32", "shape": [3]}}
    assert offload_weight(torch.ones(2), "c", tmp_path) is None


def test_indexes_add_up(tmp_path):
    save_offload_index({}, tmp_path)
    assert not (tmp_path / "index.json").exists()
    save_offload_index({"a": {"dtype": "int8", "shape": [1]}}, tmp_path)
    save_offload_index({"b": {"dtype": "int8", "shape": [2]}}, tmp_path)
    assert json.loads((tmp_path / "index.json").read_text()) == {
        "a": {"dtype": "int8", "shape": [1]},
        "b": {"dtype": "int8", "shape": [2]},
    }


def test_a_weight_is_its_file(tmp_path):
    offload_state_dict(tmp_path, {"a": torch.arange(4.0)})
    weights = OffloadedWeightsLoader(save_folder=tmp_path)
    first, again = weights["a"], weights["a"]
    assert first.data_ptr() == again.data_ptr()
    first[0] = 9.0
    assert weights["a"][0] == 9.0
    assert (tmp_path / "a.dat").read_bytes() == struct.pack("<4f", 0, 1, 2, 3)


def test_who_uses_an_older_weight_is_not_disturbed(tmp_path):
    offload_state_dict(tmp_path, {"a": torch.arange(4.0)})
    used = load_offloaded_weight(tmp_path / "a.dat", {"dtype": "float32", "shape": [4]})
    offload_weight(torch.zeros(4), "a", tmp_path, {})
    assert used.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_values_in_memory_come_first(tmp_path):
    offload_state_dict(tmp_path, {"a": torch.zeros(1), "b": torch.zeros(1)})
    own = {"b": torch.ones(1)}
    weights = OffloadedWeightsLoader(state_dict=own, save_folder=tmp_path)
    assert weights["b"] is own["b"]
    assert list(weights) == ["b", "a"]
    assert len(weights) == 2
    assert "a" in weights
    assert "c" not in weights
    assert weights.holder("b") == (own, "b")
    assert weights.holder("a") is None


def test_safetensors_that_an_index_names(tmp_path):
    save_file({"k": torch.arange(4.0)}, tmp_path / "model.safetensors")
    path = str(tmp_path / "model.safetensors")
    weights = OffloadedWeightsLoader(
        index={
            "plain": {"safetensors_file": path, "weight_name": "k", "dtype": "float32"},
            "cast": {"safetensors_file": path, "weight_name": "k", "dtype": "float16"},
            "k": {"safetensors_file": path},
        }
    )
    assert same(weights["plain"], torch.arange(4.0))
    assert weights["plain"].data_ptr() == weights["k"].data_ptr()
    assert same(weights["cast"], torch.arange(4.0).half())
    weights.will_need(["plain", "cast", "k", "other"])


def test_a_device_for_what_comes_out_of_files(tmp_path):
    offload_state_dict(tmp_path, {"a": torch.zeros(1)})
    weights = OffloadedWeightsLoader(state_dict={"b": torch.ones(1)}, save_folder=tmp_path, device="meta")
    assert weights["a"].device.type == "meta"
    assert weights["b"].device.type == "cpu"


def test_a_part_of_a_data_set():
    weights = {"a.x": torch.zeros(1), "a.y": torch.ones(1), "b.x": torch.ones(2)}
    part = PrefixedDataset(weights, "a.")
    assert part["x"] is weights["a.x"]
    assert list(part) == ["a.x", "a.y"]
    assert len(part) == 2
    assert "y" in part
    assert "z" not in part
    assert part.holder("x") == (weights, "a.x")
    assert PrefixedDataset(part, "").holder("x") == (weights, "a.x")
    with pytest.raises(KeyError, match=r"a\.z"):
        part["z"]


def test_weights_go_into_a_model(tmp_path):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].weight.requires_grad_(False)
    values = {
        "0.weight": torch.ones(2, 2),
        "0.bias": torch.ones(2),
        "1.running_mean": torch.ones(2),
        "1.num_batches_tracked": torch.tensor(7),
    }
    index: dict = {}
    for name, value in values.items():
        offload_weight(value, name, tmp_path, index)
    load_offloaded_weights(model, {}, tmp_path)
    load_offloaded_weights(model, None, tmp_path)
    load_offloaded_weights(model, index, tmp_path)
    state = model.state_dict()
    assert all(same(state[name], value) for name, value in values.items())
    assert not model[0].weight.requires_grad
    assert isinstance(model[0].bias, nn.Parameter)
    assert model[1].weight.device.type == "meta"
    with pytest.raises(CheckpointError, match="has no tensor '2.weight'"):
        load_offloaded_weights(model, {"2.weight": index["0.weight"]}, tmp_path)


def test_nothing_given():
    with pytest.raises(ConfigError, match="state_dict"):
        OffloadedWeightsLoader()


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "a\0b", "a//b"])
def test_names_stay_inside_the_folder(tmp_path, name):
    folder = tmp_path / "inner"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="no path inside"):
        offload_weight(torch.ones(1), name, folder, {})
    (tmp_path / "a.dat").write_bytes(b"\0" * 4)
    (folder / "index.json").write_text(json.dumps({name: {"dtype": "float32", "shape": [1]}}))
    weights = OffloadedWeightsLoader(save_folder=folder)
    with pytest.raises(CheckpointError):
        weights[name]
    weights.will_need([name])
    assert list(folder.iterdir()) == [folder / "index.json"]


@pytest.mark.parametrize("absolute", [True, False])
def test_an_index_file_leads_nowhere_else(tmp_path, absolute):
    save_file({"k": torch.arange(4.0)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "inner"
    folder.mkdir()
    save_file({"k": torch.arange(4.0)}, folder / "own.safetensors")
    path = str(tmp_path / "secret.safetensors") if absolute else "../secret.safetensors"
    index = {
        "k": {"safetensors_file": path, "weight_name": "k"},
        "own": {"safetensors_file": "own.safetensors", "weight_name": "k"},
    }
    (folder / "index.json").write_text(json.dumps(index))
    weights = OffloadedWeightsLoader(save_folder=folder)
    with pytest.raises(CheckpointError, match="outside of its folder"):
        weights["k"]
    weights.will_need(["k"])
    assert same(weights["own"], torch.arange(4.0))


def test_a_link_is_no_weight(tmp_path):
    (tmp_path / "other").write_bytes(b"\0" * 4)
    (tmp_path / "a.dat").symlink_to(tmp_path / "other")
    with pytest.raises(CheckpointError, match="is no file"):
        load_offloaded_weight(tmp_path / "a.dat", {"dtype": "float32", "shape": [1]})


WRONG = [
    ({"dtype": "float32", "shape": [3]}, "12 bytes, the file 16"),
    ({"dtype": "float32", "shape": [5]}, "20 bytes, the file 16"),
    ({"dtype": "float64", "shape": [4]}, "does not fit"),
    ({"dtype": "float23", "shape": [4]}, "its dtype is 'float23'"),
    ({"dtype": "nn", "shape": [4]}, "its dtype is 'nn'"),
    ({"shape": [4]}, "its dtype is None"),
    ({"dtype": "float32"}, "its shape is None"),
    ({"dtype": "float32", "shape": [-4]}, "its shape is"),
    ({"dtype": "float32", "shape": [True]}, "its shape is"),
    ({"dtype": "float32", "shape": [2.0]}, "its shape is"),
    ({"dtype": "float32", "shape": "4"}, "its shape is"),
    ({"dtype": "float32", "shape": [2**40, 2**40]}, "its shape is"),
    ({"dtype": "float32", "shape": [1] * 100}, "its shape is"),
]


@pytest.mark.parametrize(("info", "text"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_descriptions_that_cannot_be_true(tmp_path, info, text):
    path = tmp_path / "a.dat"
    path.write_bytes(b"\0" * 16)
    with pytest.raises(CheckpointError, match=text) as caught:
        load_offloaded_weight(path, info)
    assert str(path) in str(caught.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        load_offloaded_weight(tmp_path / "a.dat", {"dtype": "float32", "shape": [1]})
    with pytest.raises(CheckpointError, match="No such file"):
        OffloadedWeightsLoader(save_folder=tmp_path)
    with pytest.raises(CheckpointError, match="folder that was not given"):
        OffloadedWeightsLoader(index={"a": {"dtype": "float32", "shape": [1]}})["a"]
    weights = OffloadedWeightsLoader(index={"a": {"safetensors_file": str(tmp_path / "gone.safetensors")}})
    with pytest.raises(CheckpointError, match=r"gone\.safetensors"):
        weights["a"]
    weights.will_need(["a"])
    with pytest.raises(KeyError):
        weights["b"]


@pytest.mark.parametrize("info", [{"safetensors_file": 3}, {"safetensors_file": "x", "weight_name": 3}])
def test_an_index_of_other_types(tmp_path, info):
    with pytest.raises(CheckpointError, match="index of offloaded weights is wrong"):
        OffloadedWeightsLoader(index={"a": info})["a"]


def test_nothing_on_meta_is_offloaded(tmp_path):
    with pytest.raises(CheckpointError, match="'a' has no data"):
        offload_weight(torch.ones(1, device="meta"), "a", tmp_path)


@settings(max_examples=150, deadline=None)
@given(
    index=st.recursive(
        st.none() | st.booleans() | st.integers(-2, 9) | st.text(max_size=6),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["a", "dtype", "shape", "safetensors_file", "../b"]), inner)
        ),
        max_leaves=8,
    ),
    cut=st.integers(0, 40),
    raw=st.binary(max_size=8),
)
def test_fuzzed_folders(tmp_path_factory, index, cut, raw):
    folder: Path = tmp_path_factory.mktemp("fuzzed")
    text = json.dumps(index).encode()
    (folder / "index.json").write_bytes(text[: len(text) - cut] if cut < 20 else text)
    (folder / "a.dat").write_bytes(raw)
    try:
        weights = OffloadedWeightsLoader(save_folder=folder)
    except CheckpointError:
        return
    weights.will_need(list(weights))
    for name in weights:
        try:
            value = weights[name]
        except CheckpointError:
            continue
        assert value.numel() * value.itemsize in {0, len(raw)}
