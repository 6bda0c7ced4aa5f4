"""Operations within one process: walking, moving, cutting, joining, and exchanges with nobody."""

import dataclasses
from collections import OrderedDict, UserDict, defaultdict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

from accel_core.errors import CollectiveError, DataError, UnknownNameError
from accel_core.protocols import LonelyCollectives
from accel_state import operations as ops
from accel_state.operations.exchange import pad_to

ALONE = LonelyCollectives()


class Point(NamedTuple):
    x: object
    y: object


class Rows(list):
    """A list of somebody else's class."""


@dataclasses.dataclass
class Record:
    x: object


def tensors(min_size=1):
    """Tensors of 1 to 3 dimensions, some of them without elements."""
    shapes = st.lists(st.integers(0, 3), min_size=1, max_size=3)
    dtypes = st.sampled_from([torch.float32, torch.int64, torch.bool])
    return st.builds(lambda shape, dtype: torch.ones(shape).cumsum(0).to(dtype), shapes, dtypes)


MAPPINGS = (UserDict, OrderedDict, lambda items: defaultdict(list, items))


def nested(leaves):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            st.builds(Point, inner, inner),
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(UserDict),
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(OrderedDict),
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(
                lambda items: defaultdict(list, items)
            ),
            st.lists(inner, max_size=3).map(Rows),
        ),
        max_leaves=6,
    )


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.equal(other)
    if type(one) is not type(other):
        return False
    if isinstance(one, (dict, UserDict)):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@given(nested(st.one_of(tensors(), st.text(max_size=2), st.none())))
def test_walks_keep_structure_classes_and_other_leaves(data):
    assert same(ops.recursively_apply(lambda tensor: tensor.clone(), data), data)
    assert same(ops.send_to_device(data, "cpu"), data)
    described = ops.get_data_structure(data)
    rebuilt = ops.initialize_tensors(described)
    assert same(ops.get_data_structure(rebuilt), described)


@given(nested(tensors()))
def test_slices_put_together_are_the_whole(data):
    whole = ops.concatenate([ops.slice_tensors(data, slice(0, 1)), ops.slice_tensors(data, slice(1, None))])
    assert same(whole, data)


@given(tensors(), st.integers(-3, 2), st.integers(0, 4), st.booleans())
def test_padding_keeps_what_is_there(tensor, dim, extra, first):
    if not -tensor.ndim <= dim < tensor.ndim:
        assert pad_to(tensor, 9, dim, 0, first) is tensor
        return
    size = tensor.shape[dim] + extra
    padded = pad_to(tensor, size, dim, 1, first)
    assert padded.shape[dim] == size
    assert padded.dtype == tensor.dtype
    assert padded.narrow(dim, extra if first else 0, tensor.shape[dim]).equal(tensor)
    assert (padded.narrow(dim, 0 if first else tensor.shape[dim], extra) == 1).all()


@given(nested(tensors()))
def test_exchanges_with_nobody_return_equal_values(data):
    assert same(ops.gather(data, collectives=ALONE), data)
    assert same(ops.broadcast(data, collectives=ALONE), data)
    assert same(ops.pad_across_processes(data, collectives=ALONE), data)
    assert same(ops.reduce(data, "max", collectives=ALONE), data)


def test_one_process_gives_the_shapes_and_dtypes_of_many():
    assert ops.gather(torch.tensor(3.0), collectives=ALONE).shape == (1,)
    assert ops.reduce(torch.tensor([True]), "sum", collectives=ALONE).dtype is torch.int64
    assert ops.reduce(torch.tensor([3]), collectives=ALONE).dtype is torch.get_default_dtype()
    assert ops.gather_object([1], collectives=ALONE) == [1]
    assert ops.gather_object("ab", collectives=ALONE) == ["ab"]


def test_reduce_scales_and_leaves_the_input_alone():
    own = torch.tensor([2.0])
    assert ops.reduce(own, "sum", scale=0.5, collectives=ALONE).item() == 1.0
    assert ops.reduce(own, "none", scale=3, collectives=ALONE).item() == 6.0
    ops.reduce(own, "mean", collectives=ALONE).zero_()
    assert own.item() == 2.0
    with pytest.raises(UnknownNameError, match="Did you mean 'mean'"):
        ops.reduce(own, "maen", collectives=ALONE)


BAD = st.sampled_from(["text", None, 3, 2.5, b"x", np.zeros(2), Record(torch.ones(1)), torch.Tensor, {1}])


@st.composite
def spoiled(draw):
    """A structure of tensors with one other leaf somewhere, and the path to that leaf."""
    data, path = draw(BAD), ""
    for _ in range(draw(st.integers(0, 4))):
        beside = draw(st.lists(nested(tensors()), max_size=2))
        kind = draw(st.sampled_from([list, tuple, dict, UserDict, Point, Rows]))
        if kind is Point:
            data, path = Point(torch.ones(1), data), f"[1]{path}"
        elif kind in {dict, UserDict}:
            data = kind({**{f"k{i}": item for i, item in enumerate(beside)}, "bad": data})
            path = f"['bad']{path}"
        else:
            data, path = kind([*beside, data]), f"[{len(beside)}]{path}"
    return data, path


@given(spoiled(), st.sampled_from([ops.gather, ops.reduce, ops.broadcast, ops.pad_across_processes]))
def test_the_path_to_what_is_no_tensor_is_named(case, operation):
    data, path = case
    with pytest.raises(TypeError, match="takes tensors in lists, tuples and mappings, not ") as caught:
        operation(data, collectives=ALONE)
    assert caught.value.where == (f"at {path}" if path else "")
    with pytest.raises(TypeError) as caught:
        ops.recursively_apply(torch.clone, data, error_on_other_type=True)
    assert caught.value.where == (f"at {path}" if path else "")
    with pytest.raises(TypeError) as caught:
        ops.concatenate([data, data])
    assert caught.value.where == f"at [0]{path}"


def test_a_dataclass_is_told_how_it_can_be_passed():
    with pytest.raises(TypeError, match="not Record") as caught:
        ops.gather([Record(torch.ones(1))], collectives=ALONE)
    assert "dataclasses.asdict" in caught.value.fix


@pytest.mark.parametrize("operation", [ops.gather, ops.reduce, ops.broadcast, ops.pad_across_processes])
def test_other_leaves_are_named_with_their_place(operation):
    with pytest.raises(TypeError, match=r"not str 'x'") as caught:
        operation({"a": [torch.ones(1), "x"]}, collectives=ALONE)
    assert caught.value.where == "at ['a'][1]"


def test_recursively_apply_with_arguments_and_another_test():
    assert ops.recursively_apply(
        lambda x, y, z=0: x + y + z, [1, (2, "a")], 10, z=5, test_type=lambda x: x in (1, 2)
    ) == [
        16,
        (17, "a"),
    ]
    with pytest.raises(TypeError, match="not int 1"):
        ops.recursively_apply(lambda x: x, [1], error_on_other_type=True)


def test_questions_about_a_batch():
    batch = {"name": "x", "weight": torch.tensor(1.0), "ids": [torch.ones(4, 2)]}
    assert ops.find_batch_size(batch) == 4
    assert ops.find_device(batch) == torch.device("cpu")
    assert ops.find_device(["x"]) is None
    assert ops.get_shape(batch) == {"name": "x", "weight": [], "ids": [[4, 2]]}
    assert ops.listify({"a": torch.tensor([1, 2]), "b": torch.tensor(0.5, dtype=torch.bfloat16)}) == {
        "a": [1, 2],
        "b": 0.5,
    }
    for empty in ([], {"a": "x"}, torch.tensor(1.0), "x"):
        with pytest.raises(TypeError, match="No batch size"):
            ops.find_batch_size(empty)


def test_honor_type():
    assert ops.honor_type(Point(1, 2), iter([3, 4])) == Point(3, 4)
    assert ops.honor_type([1], iter([3])) == [3]


def test_concatenate_refuses_what_does_not_fit():
    with pytest.raises(DataError, match="not empty"):
        ops.concatenate([])
    with pytest.raises(DataError, match="alike"):
        ops.concatenate([{"a": torch.ones(1)}, {"b": torch.ones(1)}])
    with pytest.raises(DataError, match="alike"):
        ops.concatenate([[torch.ones(1)], [torch.ones(1), torch.ones(1)]])
    with pytest.raises(TypeError, match="concatenate takes tensors"):
        ops.concatenate([1, 2])
    with pytest.raises(
        DataError, match=r"joined along dimension 0: \(1, 2\) on cpu, \(1, 3\) on cpu"
    ) as caught:
        ops.concatenate([{"a": [torch.ones(1, 2)]}, {"a": [torch.ones(1, 3)]}])
    assert caught.value.where == "at ['a'][0]"
    with pytest.raises(DataError, match="alike structures, these hold 1, Tensor") as caught:
        ops.concatenate([{"a": [torch.ones(1)]}, {"a": torch.ones(1)}])
    assert caught.value.where == "at ['a']"


def test_concatenate_keeps_mapping_classes():
    joined = ops.concatenate([OrderedDict(a=torch.ones(1, 2)), OrderedDict(a=torch.zeros(1, 2))], dim=1)
    assert type(joined) is OrderedDict
    assert joined["a"].tolist() == [[1, 1, 0, 0]]


class Movable:
    def __init__(self):
        self.calls = []

    def to(self, device):
        self.calls.append(device)
        return self


class Encoding(UserDict):
    def to(self, device, non_blocking=False):
        return Encoding({key: value.to(device) for key, value in self.items()})


def test_send_to_device_moves_everything_that_can():
    batch = {"t": torch.ones(2), "n": [torch.ones(1), (torch.ones(1), 5)], "p": Point(torch.ones(1), "x")}
    moved = ops.send_to_device(batch, "meta")
    assert moved["t"].is_meta
    assert moved["n"][0].is_meta
    assert moved["n"][1][0].is_meta
    assert moved["n"][1][1] == 5
    assert type(moved["p"]) is Point
    assert moved["p"].x.is_meta
    assert not batch["t"].is_meta


def test_send_to_device_copies_nothing_that_is_there():
    batch = {"t": torch.ones(2), "parameter": torch.nn.Parameter(torch.ones(1))}
    moved = ops.send_to_device(batch, torch.device("cpu"))
    assert moved["t"] is batch["t"]
    assert moved["parameter"] is batch["parameter"]
    assert moved is not batch


@pytest.mark.parametrize("skip", ["labels", ["labels"], ("labels", "other")])
def test_send_to_device_skips_keys_at_every_depth(skip):
    batch = {"x": torch.ones(1), "labels": torch.ones(1), "inner": [{"labels": torch.ones(1)}]}
    for data in (batch, UserDict(batch), Encoding(batch)):
        if isinstance(data, Encoding):
            data.pop("inner")
        moved = ops.send_to_device(data, "meta", skip_keys=skip)
        assert type(moved) is type(data)
        assert moved["x"].is_meta
        assert not moved["labels"].is_meta
        assert "inner" not in moved or not moved["inner"][0]["labels"].is_meta


def test_send_to_device_asks_objects_that_know_how():
    thing = Movable()
    assert ops.send_to_device([thing], "meta", non_blocking=True) == [thing]
    assert thing.calls == [torch.device("meta")]
    encoded = ops.send_to_device(Encoding(ids=torch.ones(1)), "meta")
    assert type(encoded) is Encoding
    assert encoded["ids"].is_meta
    packed = ops.send_to_device(pack_sequence([torch.ones(2), torch.ones(1)]), "cpu")
    assert packed.batch_sizes.tolist() == [2, 1]
    factory = ops.send_to_device(defaultdict(list, a=torch.ones(1)), "meta")
    assert factory["missing"] == []
    assert factory["a"].is_meta
    assert ops.send_to_device(torch.Tensor, "cpu") is torch.Tensor


def test_the_documented_error_is_a_collective_error():
    assert issubclass(ops.DistributedOperationException, CollectiveError)
