"""The safetensors format: eight bytes with the length of a JSON header, the header, the tensors' bytes.

Written and read here rather than by the library of that name because a save hashes what it writes
piece by piece and copies no tensor. Source: https://huggingface.co/docs/safetensors (Format).
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from accel_core.errors import CheckpointError
from accel_core.weights.header import METADATA, MOST_HEADER, Place, read_header

from .hashing import PIECE

ALIGNMENT = 64
"""Tensors begin at a multiple of it in the file as far as their sizes allow: mapped, they need no copy."""

CODES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
"""Dtypes that the format has a name for. Others are stored as bytes, and the manifest has their name."""


def stored_as(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return the type and the shape that the header gives a tensor."""
    code = CODES.get(dtype)
    return (code, shape) if code is not None else ("U8", (*shape, dtype.itemsize))


def pieces(
    tensors: Mapping[str, torch.Tensor], texts: Mapping[str, str] | None = None
) -> Iterator[memoryview]:
    """Yield the bytes of a file that holds ``tensors``; a piece is valid until the next is asked for.

    ``texts`` are put beside them into the header.
    """
    if sys.byteorder != "little":
        raise CheckpointError("Checkpoints are written on little-endian machines only")
    # Large items first: each then begins at a multiple of its size.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {METADATA: {**(texts or {}), "format": "pt"}}
    place = 0
    for name in ordered:
        tensor = tensors[name]
        code, shape = stored_as(tensor.dtype, tuple(tensor.shape))
        end = place + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    if len(text) > MOST_HEADER:
        raise CheckpointError(
            f"The names of {len(tensors):,} tensors need a header of {len(text):,} bytes",
            fix=f"store them under several names; a header has at most {MOST_HEADER:,}",
        )
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in ordered:
        yield from _bytes(tensors[name])


def _bytes(tensor: torch.Tensor) -> Iterator[memoryview]:
    if tensor.numel() == 0:
        return
    # Not reshape: a contiguous tensor of one element may have any stride, which view() does not take.
    flat = tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    for begin in range(0, flat.numel(), PIECE):
        here = flat[begin : begin + PIECE].cpu()
        # Through ctypes, not numpy, which a PyTorch may be without.
        buffer: Any = (ctypes.c_ubyte * here.numel()).from_address(here.data_ptr())
        buffer.memory = here  # which may be nobody else's
        yield memoryview(buffer).cast("B")


__all__ = ["ALIGNMENT", "CODES", "Place", "pieces", "read_header", "stored_as"]
