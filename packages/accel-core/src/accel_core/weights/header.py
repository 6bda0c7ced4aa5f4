"""The header of a safetensors file: read and checked without torch, so that commands start at once.

Source: https://huggingface.co/docs/safetensors (Format).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..paths import open_to_read
from ..plain_json import parse
from ..trouble import explaining

MOST_HEADER = 100_000_000
"""Bytes of a header, as the library has it."""
METADATA = "__metadata__"
_MOST_DIMENSIONS = 64

WIDTHS = {
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
}
"""Bytes of one element, by what the format calls its type."""


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in a file: what the header calls its type, its shape, and where its bytes are."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path, where: str) -> dict[str, Place]:
    """Return where each tensor of a file lies; raise CheckpointError when the header cannot be true."""
    return read_whole_header(path, where)[0]


def read_whole_header(path: Path, where: str) -> tuple[dict[str, Place], dict[str, str]]:
    """Return where each tensor of a file lies, and the texts beside them. Raises as `read_header`.

    Nothing is allocated on the word of the header: lengths are compared with the size of the file.
    """
    with explaining("read a file of the checkpoint", path):
        file = open_to_read(path)
        try:
            size = os.fstat(file).st_size
            length = int.from_bytes(os.read(file, 8), "little") if size >= 8 else -1
            if not 2 <= length <= min(size - 8, MOST_HEADER):
                raise _lie(where, f"it says that its header has {length:,} bytes, in a file of {size:,}")
            text = _read_exactly(file, length)
        finally:
            os.close(file)
    header = parse(text, where)
    if not isinstance(header, dict):
        raise _lie(where, f"it is a JSON {type(header).__name__}")
    texts = header.pop(METADATA, None) or {}
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise _lie(where, f"its {METADATA} are no texts by name")
    return checked(header, 8 + length, size, where), texts


def checked(header: Mapping[str, Any], start: int, size: int, where: str) -> dict[str, Place]:
    """Return what a header without texts says of a file of ``size`` bytes whose data begins at ``start``.

    Raises CheckpointError for what cannot be true.
    """
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
    width = WIDTHS.get(code) if isinstance(code, str) else None
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


__all__ = ["METADATA", "MOST_HEADER", "WIDTHS", "Place", "checked", "read_header", "read_whole_header"]
