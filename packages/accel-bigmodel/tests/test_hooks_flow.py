"""Inputs and outputs follow their module, in containers of any kind."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from accel_bigmodel.hooks.flow import bring, device_in, key_set


@dataclass(frozen=True)
class Answer:
    first: torch.Tensor
    rest: list


class Pair(NamedTuple):
    one: torch.Tensor
    two: int


class Output(OrderedDict):
    """As transformers' outputs are."""


def test_outputs_go_where_they_should():
    meta = torch.device("meta")
    sent = bring(Answer(torch.ones(1), [torch.ones(1), {"cache": torch.ones(1)}]), meta, frozenset({"cache"}))
    assert isinstance(sent, Answer)
    assert (sent.first.device, sent.rest[0].device, sent.rest[1]["cache"].device.type) == (meta, meta, "cpu")
    output = bring(Output(a=torch.ones(1), b=(torch.ones(1), 3)), meta)
    assert isinstance(output, Output)
    assert (output["a"].device, output["b"][0].device, output["b"][1]) == (meta, meta, 3)
    here = (torch.ones(1), {"cache": [torch.ones(1)]}, Answer(torch.ones(1), []), "text", nn.Linear(1, 1))
    assert bring(here, torch.device("cpu")) is here
    there = bring(here, meta)
    assert there[4] is here[4]
    assert there[4].weight.device.type == "cpu"
    pair = bring(Pair(torch.ones(1), 3), meta)
    assert (type(pair), pair.one.device, pair.two) == (Pair, meta, 3)
    packed = nn.utils.rnn.pack_sequence([torch.ones(2), torch.ones(1)])
    assert bring([packed], torch.device("cpu"))[0].data is packed.data
    assert device_in((), {"a": [3, (torch.ones(1, device="meta"),)]}) == meta
    assert device_in("text", {}) is None
    assert (key_set(None), key_set("ab"), key_set(["a", "b"])) == (set(), {"ab"}, {"a", "b"})
