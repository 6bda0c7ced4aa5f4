"""Outputs in fp32, whatever container they come in."""

import inspect
import pickle
from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_core.nested import leaves
from accel_precision import convert_outputs_to_fp32, convert_to_fp32

pytestmark = pytest.mark.cpu

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]


class Pair(NamedTuple):
    loss: Any
    logits: Any


class ModelOutput(OrderedDict):
    """As in the transformers library: a mapping with attributes, made from its first field or a dict."""

    def __init__(self, loss=None, logits=None):
        super().__init__(loss if isinstance(loss, dict) else {"loss": loss, "logits": logits})

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


tensors = st.sampled_from(DTYPES).map(lambda dtype: torch.ones(2).to(dtype))
outputs = st.recursive(
    tensors | st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.tuples(inner, inner).map(lambda pair: Pair(*pair))
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.tuples(inner, inner).map(lambda pair: ModelOutput(*pair))
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(outputs)
def test_half_precision_leaves_become_fp32_and_all_else_stays(output):
    found = convert_to_fp32(output)
    assert type(found) is type(output)
    before, after = list(leaves(output)), list(leaves(found))
    assert [path for path, _ in before] == [path for path, _ in after]
    changed = False
    for (_, old), (_, new) in zip(before, after, strict=True):
        if isinstance(old, torch.Tensor) and old.dtype in (torch.float16, torch.bfloat16):
            changed = True
            assert new.dtype == torch.float32
            assert torch.equal(new, old.float())
        else:
            assert new is old
    if not changed:
        assert found is output


def test_attributes_of_model_outputs_and_factories_survive():
    half = torch.ones(1, dtype=torch.bfloat16)
    found = convert_to_fp32(ModelOutput(half, [half]))
    assert found.loss.dtype == found.logits[0].dtype == torch.float32
    assert convert_to_fp32(defaultdict(list, a=half))["missing"] == []
    assert convert_to_fp32(UserDict(a=half))["a"].dtype == torch.float32


def test_what_is_no_container_is_passed_through():
    @dataclass
    class Plain:
        x: torch.Tensor

    plain = Plain(torch.ones(1, dtype=torch.float16))
    assert convert_to_fp32(plain) is plain


def test_gradients_flow_through():
    x = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    convert_to_fp32({"a": x})["a"].sum().backward()
    assert x.grad.dtype == torch.bfloat16


def halved(x, *, keep=False):
    """Say what it does."""
    return x if keep else {"y": x.half()}


def test_a_function_keeps_its_looks_and_can_be_pickled():
    function = convert_outputs_to_fp32(halved)
    assert function(torch.ones(1))["y"].dtype == torch.float32
    assert function(3, keep=True) == 3
    assert function.__wrapped__ is halved
    assert inspect.signature(function) == inspect.signature(halved)
    assert function.__doc__ == "Say what it does."
    module = convert_outputs_to_fp32(torch.nn.functional.relu)
    assert pickle.loads(pickle.dumps(module))(torch.ones(1)).dtype == torch.float32
