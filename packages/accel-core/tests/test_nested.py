from collections import ChainMap, OrderedDict, UserDict, defaultdict
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_core.nested import first_leaf, is_namedtuple, leaves, map_nested


class Point(NamedTuple):
    x: Any
    y: Any


def containers(children):
    keys = st.one_of(st.text(max_size=3), st.integers())
    tables = st.dictionaries(keys, children, max_size=3)
    return st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.tuples(children, children).map(lambda pair: Point(*pair)),
        tables,
        tables.map(OrderedDict),
        tables.map(UserDict),
        tables.map(lambda table: defaultdict(list, table)),
    )


nested = st.recursive(st.one_of(st.integers(), st.none(), st.text(max_size=3)), containers, max_leaves=12)


def shape(data):
    """The classes and keys of a nested container, without its leaves."""
    if isinstance(data, (list, tuple)):
        return type(data), [shape(item) for item in data]
    if isinstance(data, (dict, UserDict)):
        return type(data), [(key, shape(value)) for key, value in data.items()]
    return None


@given(nested)
def test_mapping_changes_every_leaf_and_nothing_else(data):
    mapped = map_nested(lambda leaf: ("leaf", leaf).__repr__(), data)
    assert shape(mapped) == shape(data)
    assert [leaf for _, leaf in leaves(mapped)] == [("leaf", leaf).__repr__() for _, leaf in leaves(data)]


@given(nested)
def test_mapping_the_identity_gives_an_equal_copy(data):
    assert map_nested(lambda leaf: leaf, data) == data


@given(nested)
def test_the_path_of_a_leaf_leads_to_it(data):
    for path, leaf in leaves(data):
        assert eval(f"data{path}", {"data": data}) is leaf


def test_a_defaultdict_keeps_its_factory():
    mapped = map_nested(str, defaultdict(list, a=1))
    assert mapped["new"] == []
    assert mapped["a"] == "1"


def test_a_mapping_that_takes_no_mapping_is_copied_and_refilled():
    class Batch(UserDict):
        def __init__(self, *, size):
            self.size = size
            super().__init__()

    batch = Batch(size=2)
    batch["x"] = 1
    mapped = map_nested(lambda leaf: leaf + 1, batch)
    assert (type(mapped), dict(mapped)) == (Batch, {"x": 2})
    assert dict(batch) == {"x": 1}


def test_another_mapping_class():
    mapped = map_nested(str, ChainMap({"a": 1}))
    assert (type(mapped), dict(mapped)) == (ChainMap, {"a": "1"})


def test_skipped_keys_pass_through_at_every_depth():
    data = {"keep": [1, 2], "inner": {"keep": (3,), "go": 4}, "go": 5}
    mapped = map_nested(str, data, skip_keys=frozenset({"keep"}))
    assert mapped == {"keep": [1, 2], "inner": {"keep": (3,), "go": "4"}, "go": "5"}
    assert mapped["keep"] is data["keep"]


def test_the_first_leaf_that_is_accepted():
    data = [None, {"a": ("x", 3)}, 4]
    assert first_leaf(data, lambda leaf: isinstance(leaf, int)) == 3
    assert first_leaf(data, lambda leaf: isinstance(leaf, float)) is None


@pytest.mark.parametrize(
    ("data", "answer"), [(Point(1, 2), True), ((1, 2), False), ([1], False), (Point, False)]
)
def test_named_tuples(data, answer):
    assert is_namedtuple(data) is answer
