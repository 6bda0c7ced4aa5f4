"""One file of weights as a mapping; nothing in it is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from accel_core.weights.header import read_whole_header
from accel_core.weights.pickled import load_named

from ..checkpoint.manifest import Entry, TensorRecord
from ..checkpoint.source import StoredTensors
from ..checkpoint.tensor_file import CODES

_NAMES = {code: str(dtype).removeprefix("torch.") for dtype, code in CODES.items()}


def read_safe(path: Path) -> Mapping[str, torch.Tensor]:
    """Return the tensors of a file of safetensors, mapped, also under the further names in its header.

    Raises CheckpointError for a header that cannot be true.
    """
    places, texts = read_whole_header(path, str(path))
    records = {name: TensorRecord(_NAMES[place.code], place.shape) for name, place in places.items()}
    for name, first in texts.items():
        if name not in places and first in places:
            of = records[first]
            records[name] = TensorRecord(of.dtype, of.shape, first, 0, _strides(of.shape))
    return StoredTensors(path, Entry("tensors", path.name, records), places)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    result = [1] * len(shape)
    for place in range(len(shape) - 2, -1, -1):
        result[place] = result[place + 1] * shape[place + 1]
    return tuple(result)


def read_pickled(path: Path) -> Mapping[str, torch.Tensor]:
    """Return what ``torch.save`` wrote, if it is tensors by name. Raises CheckpointError."""
    return load_named(path, torch.load, torch.Tensor)


__all__ = ["read_pickled", "read_safe"]
