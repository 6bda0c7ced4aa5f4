"""Gradient operations against torch's own, and where torch's own gives up."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from accel_parallel import TorchGradients

pytestmark = pytest.mark.cpu

OPS = TorchGradients()
shapes = st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=4)


def with_gradients(sizes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.zeros(size, dtype=dtype)) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return parameters


@settings(max_examples=40, deadline=None)
@given(sizes=shapes, max_norm=st.floats(0.01, 10), norm_type=st.sampled_from([1.0, 2.0, 3.0, float("inf")]))
def test_norm_clipping_is_torchs(sizes, max_norm, norm_type):
    ours, torchs = with_gradients(sizes), with_gradients(sizes)
    found = OPS.clip_norm_(ours, max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(torchs, max_norm, norm_type)
    assert torch.equal(found, expected)
    for one, other in zip(ours, torchs, strict=True):
        assert torch.equal(one.grad, other.grad)


@settings(max_examples=30, deadline=None)
@given(sizes=shapes, limit=st.floats(0.01, 2), factor=st.floats(-4, 4))
def test_value_clipping_and_scaling(sizes, limit, factor):
    ours, plain = with_gradients(sizes), with_gradients(sizes)
    OPS.scale_(ours, factor)
    OPS.clip_value_(ours, limit)
    for one, other in zip(ours, plain, strict=True):
        assert torch.equal(one.grad, (other.grad * factor).clamp(-limit, limit))


@pytest.mark.parametrize("given_as", [list, tuple, iter, lambda ps: (p for p in ps)])
def test_parameters_may_be_any_iterable(given_as):
    parameters = with_gradients([[2], [3]])
    without = nn.Parameter(torch.ones(1))
    reference = torch.cat([p.grad for p in parameters])
    OPS.scale_(given_as([*parameters, without]), 2.0)
    norm = OPS.clip_norm_(given_as([*parameters, without]), 1.0)
    OPS.clip_value_(given_as([*parameters, without]), 0.1)
    assert norm.item() == pytest.approx(2 * reference.norm().item(), rel=1e-12)
    assert max(p.grad.abs().max().item() for p in parameters) == pytest.approx(0.1, rel=1e-12)
    assert without.grad is None


def test_one_tensor_is_one_parameter_and_not_its_rows():
    (parameter,) = with_gradients([[3, 2]])
    norm = parameter.grad.norm()
    assert torch.allclose(OPS.clip_norm_(parameter, 0.5), norm)
    assert parameter.grad.norm().item() == pytest.approx(0.5, rel=1e-5)  # torch divides by norm + 1e-6
    OPS.scale_(parameter, 2.0)
    OPS.clip_value_(parameter, 0.01)
    assert parameter.grad.abs().max() <= 0.01


@pytest.mark.parametrize("parameters", [[], [nn.Parameter(torch.ones(2))]], ids=["none", "no gradient"])
def test_nothing_to_do_is_no_error(parameters):
    OPS.scale_(parameters, 2.0)
    OPS.clip_value_(parameters, 1.0)
    assert OPS.clip_norm_(parameters, 1.0) == 0.0


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_norm_that_is_not_finite_is_returned_and_not_hidden(bad):
    ours, torchs = with_gradients([[2], [3]]), with_gradients([[2], [3]])
    for parameters in (ours, torchs):
        parameters[0].grad[0] = bad
    found = OPS.clip_norm_(ours, 1.0)
    expected = torch.nn.utils.clip_grad_norm_(torchs, 1.0)
    assert torch.equal(found.isnan(), expected.isnan())
    assert not found.isfinite()
    for one, other in zip(ours, torchs, strict=True):
        assert torch.equal(one.grad.nan_to_num(7.0), other.grad.nan_to_num(7.0))


def embedding(sparse):
    torch.manual_seed(0)
    table = nn.Embedding(6, 3, sparse=sparse).double()
    head = nn.Linear(3, 2).double()
    # Row 1 is met twice: its gradient is one element that two entries add up to.
    (head(table(torch.tensor([1, 1, 4]))) * torch.tensor([[1.0], [2.0], [5.0]])).sum().backward()
    return [table.weight, head.weight, head.bias]


def test_sparse_gradients_are_treated_as_the_dense_ones_they_stand_for():
    for operation in (
        lambda parameters: OPS.scale_(parameters, 3.0),
        lambda parameters: OPS.clip_norm_(parameters, 0.5),
        lambda parameters: OPS.clip_norm_(parameters, 1e9),
        lambda parameters: OPS.clip_norm_(parameters, 0.5, float("inf")),
        lambda parameters: OPS.clip_value_(parameters, 0.2),
    ):
        sparse, dense = embedding(True), embedding(False)
        found, expected = operation(sparse), operation(dense)
        assert sparse[0].grad.is_sparse
        # The norm of the elements is summed in another order.
        assert found is expected or torch.allclose(found, expected, rtol=1e-12)
        for one, other in zip(sparse, dense, strict=True):
            assert torch.allclose(one.grad.to_dense(), other.grad, rtol=1e-12, atol=0)


def test_scaling_does_without_the_private_kernel(monkeypatch):
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    for weight in weights:
        weight.grad = torch.full_like(weight, 2.0)
    monkeypatch.delattr(torch, "_foreach_mul_")
    TorchGradients().scale_(weights, 0.25)
    assert [weight.grad.tolist() for weight in weights] == [[0.5] * 2, [0.5] * 3]
