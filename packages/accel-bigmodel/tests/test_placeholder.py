"""What stands for an offloaded weight is looked at, and never computed with."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from accel_bigmodel import cpu_offload
from accel_core.errors import StateError


def parked():
    layer = nn.Linear(3, 3)
    layer.weight.note = 7
    layer.weight.requires_grad_(False)
    layer.register_buffer("mask", torch.ones(3))
    return cpu_offload(layer, offload_buffers=True)


@pytest.mark.parametrize(
    "use",
    [
        lambda x, weight: F.linear(x, weight),
        lambda x, weight: x @ weight,
        lambda x, weight: weight @ x,
        lambda x, weight: F.embedding(torch.tensor([0]), weight),
        lambda x, weight: torch.cat([x, weight]),
        lambda x, weight: torch.addmm(x, mat1=x, mat2=weight),
        lambda x, weight: x.add_(weight),
        lambda x, weight: weight.copy_(x),
        lambda x, weight: F.conv1d(x[None], weight[..., None]),
    ],
    ids=["linear", "matmul", "rmatmul", "embedding", "cat", "named", "added", "copied", "conv"],
)
def test_it_refuses_to_be_computed_with(use):
    layer = parked()
    with pytest.raises(StateError, match=r"is offloaded, and \w+ was to use it") as raised:
        use(torch.ones(3, 3), layer.weight)
    assert "preload_module_classes" in raised.value.fix
    with pytest.raises(StateError, match="'mask' is offloaded, and mul"):
        torch.ones(3) * layer.mask


def test_it_is_looked_at_as_any_other():
    weight = parked().weight
    assert isinstance(weight, nn.Parameter)
    assert (weight.shape, weight.dtype, weight.device.type, weight.is_meta) == (
        (3, 3),
        torch.float32,
        "meta",
        True,
    )
    assert (weight.numel(), weight.note, weight.requires_grad, weight.is_leaf) == (9, 7, False, True)
    # What is made of it stands for it, too.
    for made in (
        weight.detach(),
        weight.data,
        weight.T,
        weight.chunk(3)[0],
        weight[0],
        torch.stack([weight]),
    ):
        assert not isinstance(made, nn.Parameter)
        with pytest.raises(StateError, match="'weight' is offloaded"):
            made + torch.ones(1)
    assert "size=(3, 3)" in repr(weight)
    assert torch.empty_like(weight).shape == (3, 3)
    assert (weight + weight).is_meta
    with pytest.raises(NotImplementedError, match="meta"):
        weight.to("cpu")


def test_copies_stand_for_the_same():
    layer = parked()
    for other in (copy.deepcopy(layer.weight), pickle.loads(pickle.dumps(layer.weight))):
        assert type(other) is type(layer.weight)
        assert (other.note, other.requires_grad, other.is_meta) == (7, False, True)
        with pytest.raises(StateError, match="'weight' is offloaded"):
            torch.ones(3, 3) @ other


def test_values_are_not_placeholders():
    layer = parked()
    seen = []
    layer.register_forward_hook(lambda module, *_: seen.append([type(module.weight), type(module.mask)]))
    plain = layer(torch.ones(1, 3))
    inside = layer._old_forward
    layer._old_forward = lambda x: (seen.append([type(layer.weight), type(layer.mask)]), inside(x))[1]
    assert torch.equal(layer(torch.ones(1, 3)), plain)
    assert seen[1] == [nn.Parameter, torch.Tensor]


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_a_checkpoint_is_not_loaded_into_nothing():
    """Torch copies into tensors without data, and that does nothing."""
    layer = parked()
    with pytest.raises(RuntimeError, match="is offloaded"):
        layer.load_state_dict(nn.Linear(3, 3).state_dict() | {"mask": torch.zeros(3)})
