"""Sizes counted against the tensors themselves."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from accel_bigmodel import (
    calculate_maximum_sizes,
    compute_module_sizes,
    find_tied_parameters,
    get_max_layer_size,
    init_empty_weights,
)
from accel_core.errors import UnknownNameError


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU())
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight
        self.extra = nn.Parameter(torch.ones(5, dtype=torch.float64))
        self.register_buffer("index", torch.arange(4))


def test_every_module_and_tensor():
    assert compute_module_sizes(Model()) == {
        "": 260,
        "extra": 5 * 8,
        "embed": 84,
        "embed.weight": 7 * 3 * 4,
        "block": 104,
        "block.0": 48,
        "block.0.weight": 36,
        "block.0.bias": 12,
        "block.1": 56,
        "block.1.weight": 12,
        "block.1.bias": 12,
        "block.1.running_mean": 12,
        "block.1.running_var": 12,
        "block.1.num_batches_tracked": 8,
        "index": 4 * 8,
    }


def test_a_shared_tensor_is_counted_once_and_a_missing_name_is_nothing():
    sizes = compute_module_sizes(Model())
    assert sizes["head"] == sizes["no.such"] == 0


@pytest.mark.parametrize("dtype", [torch.float16, "float16", "torch.float16", torch.bfloat16])
def test_a_narrower_dtype_halves_floats_and_leaves_integers(dtype):
    sizes = compute_module_sizes(Model(), dtype=dtype)
    assert (sizes["embed.weight"], sizes["extra"], sizes["index"]) == (42, 10, 32)


def test_a_wider_dtype_changes_nothing():
    assert compute_module_sizes(Model(), dtype=torch.float64) == compute_module_sizes(Model())


def test_special_dtypes_hold_whatever_they_are():
    sizes = compute_module_sizes(
        Model(), dtype="float16", special_dtypes={"embed.weight": torch.float64, "extra": "int8"}
    )
    assert (sizes["embed.weight"], sizes["extra"], sizes["block.0.weight"]) == (168, 5, 18)


def test_buffers_only():
    assert compute_module_sizes(Model(), buffers_only=True)[""] == 32 + 12 + 12 + 8


def test_an_unknown_dtype():
    with pytest.raises(UnknownNameError, match="float16"):
        compute_module_sizes(Model(), dtype="float61")


def test_a_skeleton_has_the_same_sizes():
    with init_empty_weights():
        skeleton = Model()
    assert compute_module_sizes(skeleton) == compute_module_sizes(Model())
    assert calculate_maximum_sizes(skeleton) == calculate_maximum_sizes(Model())


@settings(max_examples=30, deadline=None)
@given(widths=st.lists(st.integers(1, 6), min_size=2, max_size=5), bias=st.booleans())
def test_the_total_is_that_of_the_tensors(widths, bias):
    layers = [nn.Linear(a, b, bias=bias) for a, b in pairwise(widths)]
    model = nn.Sequential(nn.Sequential(*layers), nn.BatchNorm1d(widths[-1]))
    tensors = [*model.parameters(), *model.buffers()]
    sizes = compute_module_sizes(model)
    assert sizes[""] == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert sizes[""] == sizes["0"] + sizes["1"]
    total, (largest, names) = calculate_maximum_sizes(model)
    each = {f"0.{index}": sizes[f"0.{index}"] for index in range(len(layers))} | {"1": sizes["1"]}
    assert total == sizes[""]
    assert largest == max(each.values())
    assert names == [name for name, size in each.items() if size == largest]


def test_the_largest_layer():
    assert calculate_maximum_sizes(Model()) == (260, (84, ["embed"]))


def test_what_must_not_be_split_is_one_layer():
    model = Model()
    model._no_split_modules = ["Sequential"]
    assert calculate_maximum_sizes(model) == (260, (104, ["block"]))


def test_the_largest_of_some_modules():
    model = Model()
    sizes = compute_module_sizes(model)
    some = [("block", model.block), ("extra", model.extra)]
    assert get_max_layer_size(some, sizes, []) == (56, ["block.1"])
    assert get_max_layer_size(some, sizes, ["Sequential"]) == (104, ["block"])
    assert get_max_layer_size([], sizes, []) == (0, [])


def test_tied_parameters_in_the_order_of_the_model():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    assert find_tied_parameters(model) == []
    model[1].bias = model[0].bias
    model[1].weight = model[2].weight = model[0].weight
    assert find_tied_parameters(model) == [["0.weight", "1.weight", "2.weight"], ["0.bias", "1.bias"]]
