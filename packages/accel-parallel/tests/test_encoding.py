"""State as JSON and tensors: every value comes back as it was, or is refused with its place."""

from __future__ import annotations

import json
from collections import Counter, defaultdict, deque, namedtuple
from datetime import datetime
from enum import Enum

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel_core.errors import CheckpointError
from accel_parallel.encoding import decode, encode, owned

PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
KEYS = st.text() | st.integers() | st.booleans() | st.tuples(st.integers(), st.text())
NESTED = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.lists(inner).map(lambda items: deque(items, maxlen=7))
        | st.dictionaries(KEYS, inner)
        | st.dictionaries(KEYS, inner).map(lambda items: defaultdict(list, items))
        | st.dictionaries(KEYS, st.integers()).map(Counter)
    ),
    max_leaves=12,
)


def there_and_back(value):
    tensors = {}
    text = json.dumps(encode(value, "it", tensors), allow_nan=False)
    return decode(json.loads(text), tensors)


def same(one, other):
    return type(one) is type(other) and repr(one) == repr(other)


@given(NESTED)
def test_every_plain_value_comes_back_as_it_was(value):
    assert same(there_and_back(value), value)


@given(st.sets(st.integers() | st.text()) | st.frozensets(st.binary()))
def test_sets_come_back_with_the_same_members(value):
    back = there_and_back(value)
    assert type(back) is type(value)
    assert back == value


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint32).reshape(2, 3),
        np.zeros((0, 4)),
        np.array(2.5),
        np.array(["a", "bcd"]),
        np.array(["2026-01-01"], dtype="datetime64[D]"),
        np.arange(12).reshape(3, 4)[:, ::2],
        np.float32(0.1),
        np.int64(7),
        np.bool_(1),
    ],
    ids=lambda each: f"{type(each).__name__}{each.shape}{each.dtype}",
)
def test_arrays_and_their_scalars(array):
    back = there_and_back({"a": [array]})["a"][0]
    assert type(back) is type(array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert (back == array).all()


def test_tensors_are_taken_as_they_are():
    tensors = {}
    value = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    content = encode({"a": {"b.c": value}, "a.b": {"c": value}}, "it", tensors)
    assert len(tensors) == 2
    back = decode(content, tensors)
    assert back["a"]["b.c"].data_ptr() == value.data_ptr()
    assert not back["a"]["b.c"].requires_grad


def test_dtypes_and_devices():
    value = [torch.float16, torch.device("cpu"), torch.device("cuda:3"), torch.Size([2, 3])]
    assert there_and_back(value) == value


class Colour(Enum):
    RED = 1


Point = namedtuple("Point", "x y")  # noqa: PYI024 - the untyped kind


@pytest.mark.parametrize(
    "value",
    [
        object(),
        Colour.RED,
        Point(1, 2),
        datetime.now,
        lambda: 0,
        defaultdict(lambda: 0),
        np.array([object()]),
    ],
    ids=["object", "enum", "namedtuple", "method", "lambda", "factory", "objects"],
)
def test_what_would_need_pickle_is_refused_with_its_place(value):
    with pytest.raises(CheckpointError, match=r"cannot be written to a checkpoint without pickle") as caught:
        encode({"outer": [1, value]}, "it", {})
    assert caught.value.where == "it.outer.1"


def test_what_contains_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(CheckpointError, match="levels deep"):
        encode(value, "it", {})


@pytest.mark.parametrize(
    "content",
    [
        {"tensor": "absent"},
        {"code": "import os"},
        {"dict": {}, "list": []},
        {"dtype": "load"},
        {"dtype": "__name__"},
        {"bytes": "%%"},
        {"map": [[1]]},
        {"map": [[{"list": []}, 1]]},
        {"defaultdict": ["eval", []]},
        {"deque": [1]},
        {"numpy": ["absent", "O", [], False]},
        {"complex": ["x", "1"]},
    ],
)
def test_what_is_not_of_our_making_is_refused(content):
    with pytest.raises(CheckpointError, match="cannot read"):
        decode(content, {})


def test_memory_of_its_own_is_shared_as_before():
    base = torch.arange(6.0)
    given = {"whole": base, "part": base[2:4], "square": base.view(2, 3).t(), "empty": torch.empty(0, 3)}
    got = owned({**given, "other": torch.ones(2, dtype=torch.bfloat16)})
    assert all(torch.equal(got[name], given[name]) for name in given)
    assert got["square"].stride() == given["square"].stride()
    base.zero_()
    assert got["part"].tolist() == [2.0, 3.0]
    got["whole"][2] = 9
    assert (got["part"][0], got["square"][2, 0]) == (9, 9)
