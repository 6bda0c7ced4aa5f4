"""Tensors of any strides lie together in one piece of memory and come out of it as they were."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_bigmodel.offload.layout import as_bytes, lay_out, packable

DTYPES = [torch.float32, torch.float16, torch.bool, torch.int64, torch.complex64, torch.float8_e5m2]


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    value = (torch.arange(torch.Size(shape).numel() + 3) % 2).to(dtype)[3:].view(shape)
    if value.dim() > 1 and draw(st.booleans()):
        value = value.permute(draw(st.permutations(range(value.dim()))))
    if value.dim() and draw(st.booleans()):
        value = value[..., ::2] if draw(st.booleans()) else value.unsqueeze(0).expand(2, *value.shape)
    return value


@settings(max_examples=200, deadline=None)
@given(st.lists(tensors(), max_size=6))
def test_they_come_out_as_they_were(values):
    for value in values:
        if not packable(value):
            # A part of other memory, or memory that is used twice.
            assert not value.is_contiguous()
    values = [value for value in values if packable(value)]
    layout = lay_out(values)
    memory = torch.zeros(layout.size, dtype=torch.uint8)
    for value, piece in zip(values, layout.pieces, strict=True):
        memory[piece.begin : piece.end].copy_(as_bytes(value))
    assert layout.holds(values)
    for value, piece in zip(values, layout.pieces, strict=True):
        found = piece.view(memory)
        assert (found.dtype, found.shape, found.stride()) == (value.dtype, value.shape, value.stride())
        assert torch.equal(found.view(torch.uint8) if found.itemsize == 1 else found, _plain(value))
        assert piece.begin % 256 == 0


def _plain(value):
    return value.view(torch.uint8) if value.itemsize == 1 else value


def test_what_is_more_than_its_bytes_is_not_packed():
    assert packable(torch.nn.Parameter(torch.ones(2)))
    assert not packable(torch.ones(2, dtype=torch.complex64).conj())
    assert not packable(torch.ones(2, 2).to_sparse())

    class Own(torch.Tensor):
        pass

    assert not packable(torch.ones(2).as_subclass(Own))


def test_changes_are_counted_for_each():
    values = [torch.zeros(2), torch.zeros(2)]
    layout = lay_out(values)
    memory = torch.zeros(layout.size, dtype=torch.uint8)
    first, second = (piece.view(memory) for piece in layout.pieces)
    first.add_(1)
    assert (first._version, second._version) == (1, 0)
