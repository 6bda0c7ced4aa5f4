"""Read weights from a folder, a file or an index, and nothing outside of what they name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from accel_core.weights.index import Spread, locate, real_file
from accel_core.weights.layout import SAFE

from .decode import read_pickled, read_safe


class Weights(Spread[torch.Tensor]):
    """Tensors by name on the CPU, read from ``files`` when they are taken out where the format allows it.

    Safetensors are mapped: a page is read when it is used, and memory is the system's to take back.
    """


def read(path: str | os.PathLike[str]) -> Weights:
    """Return the weights that ``path`` holds: a folder, one file of weights, or an index of several.

    What is looked for in a folder says `accel_core.weights.index.locate`. What ``torch.save`` wrote is read
    with ``weights_only=True``.

    Raises CheckpointError for files that are missing, damaged or no weights, and for an index that leads
    out of its folder or says what its files do not.
    """
    found = locate(path)
    parts = {file: _part(file) for file in found.files}
    return Weights(parts, found.assign(parts))


def _part(path: Path) -> Mapping[str, torch.Tensor]:
    real = real_file(path)
    return read_safe(real) if path.suffix == SAFE.ending else read_pickled(real)


__all__ = ["Weights", "read"]
