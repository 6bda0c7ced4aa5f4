from collections import OrderedDict
from typing import Any, NamedTuple

import pytest

from accel_core.moving import move


class Pair(NamedTuple):
    left: Any
    right: Any


class Thing:
    """Knows how to move, as a tensor does."""

    def __init__(self, device="here"):
        self.device = device
        self.moves = []

    def to(self, device, non_blocking=False):
        moved = Thing(device)
        moved.moves = [*self.moves, non_blocking]
        return moved


class Stubborn:
    """Has a ``to`` without the keyword."""

    def __init__(self):
        self.went = None

    def to(self, device):
        self.went = device
        return self


def test_every_container_keeps_its_class_and_everything_in_it_moves():
    data = {"a": Thing(), "b": [Thing(), (Thing(), 3)], "c": Pair(Thing(), "x"), "d": OrderedDict(e=Thing())}
    moved = move(data, "there")
    assert moved["a"].device == moved["b"][0].device == moved["b"][1][0].device == "there"
    assert moved["c"].left.device == moved["d"]["e"].device == "there"
    assert (type(moved["b"][1]), type(moved["c"]), type(moved["d"])) == (tuple, Pair, OrderedDict)
    assert (moved["b"][1][1], moved["c"].right) == (3, "x")


def test_what_is_there_already_is_not_touched():
    thing = Thing("there")
    assert move(thing, "there") is thing


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_skipped_keys_stay(kind):
    data = kind(moved=Thing(), kept=Thing())
    assert [item.device for item in move(data, "there", skip_keys=frozenset({"kept"})).values()] == [
        "there",
        "here",
    ]


def test_non_blocking_reaches_whoever_knows_it():
    stubborn = Stubborn()
    moved = move([Thing(), stubborn], "there", non_blocking=True)
    assert moved[0].moves == [True]
    assert (moved[1], stubborn.went) == (stubborn, "there")


def test_a_class_is_no_thing_to_move():
    assert move([Thing, 1, None], "there") == [Thing, 1, None]
