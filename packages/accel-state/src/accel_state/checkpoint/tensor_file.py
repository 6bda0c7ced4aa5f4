"""The safetensors format: eight bytes with the length of a JSON header, the header, the tensors' bytes.

Written and read here rather than by the library of that name because a save hashes what it writes
piece by piece and copies no tensor. Source: https://huggingface.co/docs/safetensors (Format).
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from accel_core.errors import CheckpointError

from .files import open_to_read
from .hashing import PIECE
from .plain_json import parse
from .trouble import explaining

ALIGNMENT = 64
"""Tensors begin at a multiple of it in the file as far as their sizes allow: mapped, they need no copy."""
_MOST_HEADER = 100_000_000
"""As the library has it."""
_MOST_DIMENSIONS = 64

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


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in a file: what the header calls its type, its shape, and where its bytes are."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


def stored_as(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return the type and the shape that the header gives a tensor."""
    code = CODES.get(dtype)
    return (code, shape) if code is not None else ("U8", (*shape, dtype.itemsize))


def pieces(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview]:
    """Yield the bytes of a file that holds ``tensors``; a piece is valid until the next is asked for."""
    if sys.byteorder != "little":
        raise CheckpointError("Checkpoints are written on little-endian machines only")
    # Large items first: each then begins at a multiple of its size.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in ordered:
        tensor = tensors[name]
        code, shape = stored_as(tensor.dtype, tuple(tensor.shape))
        end = place + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    if len(text) > _MOST_HEADER:
        raise CheckpointError(
            f"The names of {len(tensors):,} tensors need a header of {len(text):,} bytes",
            fix=f"store them under several names; a header has at most {_MOST_HEADER:,}",
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
        buffer = (ctypes.c_ubyte * here.numel()).from_address(here.data_ptr())
        yield memoryview(buffer).cast("B")


def read_header(path: Path, where: str) -> dict[str, Place]:
    """Return where each tensor of a file lies; raise CheckpointError when the header cannot be true.

    Nothing is allocated on the word of the header: lengths are compared with the size of the file.
    """
    with explaining("read a file of the checkpoint", path):
        file = open_to_read(path)
        try:
            size = os.fstat(file).st_size
            length = int.from_bytes(os.read(file, 8), "little") if size >= 8 else -1
            if not 2 <= length <= min(size - 8, _MOST_HEADER):
                raise _lie(where, f"it says that its header has {length:,} bytes, in a file of {size:,}")
            text = _read_exactly(file, length)
        finally:
            os.close(file)
    header = parse(text, where)
    if not isinstance(header, dict):
        raise _lie(where, f"it is a JSON {type(header).__name__}")
    header.pop("__metadata__", None)
    start = 8 + length
    found = {name: _place(name, value, start, size, where) for name, value in header.items()}
    _gapless(found, start, size, where)
    return found


def _read_exactly(file: int, count: int) -> bytes:
    parts = []
    while count and (part := os.read(file, count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _place(name: str, value: Any, start: int, size: int, where: str) -> Place:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _lie(where, f"{name!r} has no dtype, shape and data_offsets")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not (_counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise _lie(where, f"{name!r} has shape {_cut(shape)} and data_offsets {_cut(offsets)}")
    width = _WIDTHS.get(code) if isinstance(code, str) else None
    if width is None:
        raise _lie(where, f"{name!r} has the unknown dtype {_cut(code)}")
    begin, end = start + offsets[0], start + offsets[1]
    if not begin <= end <= size or math.prod(shape) * width != end - begin:
        raise _lie(
            where,
            f"{name!r} is {code} of shape {_cut(shape)}, which does not fit its bytes "
            f"{offsets[0]:,} to {offsets[1]:,} of {size - start:,}",
        )
    return Place(code, tuple(shape), begin, end)


_WIDTHS = {code: dtype.itemsize for dtype, code in CODES.items()}


def _counts(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > _MOST_DIMENSIONS:
        return False
    return all(type(each) is int and 0 <= each < 2**63 for each in value)


def _gapless(found: Mapping[str, Place], start: int, size: int, where: str) -> None:
    """Refuse tensors that overlap, and bytes that belong to none."""
    place = start
    for name, each in sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)):
        if each.begin != place:
            raise _lie(where, f"{name!r} begins at byte {each.begin - start:,}, not {place - start:,}")
        place = each.end
    if place != size:
        raise _lie(where, f"{size - place:,} bytes belong to no tensor")


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _lie(where: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"The header of a tensor file is wrong: {what}",
        where=where,
        fix="do not use this checkpoint: it is damaged, or was made to mislead",
    )


__all__ = ["ALIGNMENT", "CODES", "Place", "pieces", "read_header", "stored_as"]
