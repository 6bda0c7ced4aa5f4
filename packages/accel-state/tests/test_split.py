"""Cutting collections: nothing lost, nothing twice, equal lengths with padding."""

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, Subset, TensorDataset

from accel_core.errors import DataError
from accel_state.split import part_of, split

lengths = st.integers(0, 60)
worlds = st.integers(1, 9)


@given(lengths, worlds)
def test_parts_are_the_whole_in_order(length, count):
    parts = [part_of(length, index, count) for index in range(count)]
    assert [position for part in parts for position in part] == list(range(length))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@given(lengths, worlds)
def test_padded_parts_are_equally_long_and_end_with_the_last(length, count):
    parts = [part_of(length, index, count, padded=True) for index in range(count)]
    assert len({len(part) for part in parts}) == 1
    joined = [position for part in parts for position in part]
    assert set(joined) == set(range(length))
    for index, part in enumerate(parts):
        real = part_of(length, index, count)
        assert part == real + [length - 1] * (len(part) - len(real))


@given(st.lists(st.integers(), max_size=20), worlds, st.booleans())
def test_every_container_is_cut_alike(values, count, padding):
    for index in range(count):
        expected = split(values, index, count, apply_padding=padding)
        assert split(tuple(values), index, count, apply_padding=padding) == tuple(expected)
        tensor = torch.tensor(values, dtype=torch.float64)
        if all(abs(value) < 2**53 for value in values):
            assert split(tensor, index, count, apply_padding=padding).tolist() == expected
        assert split({"a": values, "b": {"c": values}}, index, count, apply_padding=padding) == {
            "a": expected,
            "b": {"c": expected},
        }


def test_classes_are_kept():
    cut = split(OrderedDict(a=[1, 2, 3]), 0, 2)
    assert type(cut) is OrderedDict
    assert split(range(5), 1, 2) == range(3, 5)
    assert split(range(3), 1, 2, apply_padding=True) == [2, 2]


def test_more_processes_than_items():
    assert [split([7], index, 3) for index in range(3)] == [[7], [], []]
    assert [split([7], index, 3, apply_padding=True) for index in range(3)] == [[7], [7], [7]]
    assert split([], 1, 3, apply_padding=True) == []


def test_data_sets():
    class Squares(Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return index**2

    part = split(Squares(), 1, 2, apply_padding=True)
    assert isinstance(part, Subset)
    assert [part[index] for index in range(len(part))] == [9, 16, 16]
    assert len(split(TensorDataset(torch.arange(5)), 0, 2)) == 3

    class Selectable(Squares):
        def select(self, positions):
            return [self[position] for position in positions]

    assert split(Selectable(), 1, 2) == [9, 16]


def test_numpy():
    np = pytest.importorskip("numpy")
    assert split(np.arange(6).reshape(3, 2), 1, 2, apply_padding=True).tolist() == [[4, 5], [4, 5]]


def test_one_process_gets_the_very_object():
    values = iter([1, 2])
    assert split(values, 0, 1) is values


class Pair(NamedTuple):
    a: int
    b: int


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("text", "class str cannot be split"),
        (iter([1]), "list_iterator cannot be split"),
        ({1, 2}, "class set cannot be split"),
        (5, "class int cannot be split"),
        (torch.tensor(3.0), "without dimensions"),
        (Pair(1, 2), "Pair has fixed fields"),
        ({"a": [1, 2], "b": [1]}, r"equally long .*'a': 2, 'b': 1"),
    ],
)
def test_what_cannot_be_cut_is_named(inputs, message):
    with pytest.raises(DataError, match=message):
        split(inputs, 0, 2)
