"""The weights of a checkpoint by name, from a folder, a file or an index, and nothing outside of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from accel_core.weights.index import Spread, locate, real_file
from accel_core.weights.layout import SAFE

from .mapped import Location, MappedFile
from .pickled import PickledFile

_File = MappedFile | PickledFile


class CheckpointWeights(Spread[torch.Tensor]):
    """Tensors by name on the CPU. What is taken out of safetensors is their pages: no copy, no reading.

    ``files``: those that were opened, as they were named. ``source``: the file or index that led to them.
    """

    def __init__(self, source: Path, parts: Mapping[Path, _File], places: Mapping[str, Path]) -> None:
        super().__init__(parts, places)
        self.source = source
        self._opened = parts

    def file(self, name: str) -> Path:
        """Return the file that holds ``name``."""
        return self._places[name]

    def location(self, name: str) -> Location | None:
        """Return where the bytes of ``name`` are; None for what ``torch.save`` wrote."""
        return self._opened[self._places[name]].location(name)

    def kind(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return the shape and the dtype of ``name``."""
        place = self.location(name)
        if place is not None:
            return place.shape, place.dtype
        tensor = self[name]
        return tuple(tensor.shape), tensor.dtype

    def same_as(self, name: str) -> str:
        """Return the name that the bytes of ``name`` are stored under: mostly itself."""
        return self._opened[self._places[name]].tied.get(name, name)

    def will_need(self, names: Iterable[str]) -> None:
        """Ask the system to read the pages of these tensors ahead. Never fails."""
        wanted: dict[Path, list[str]] = {}
        for name in names:
            if name in self._places:
                wanted.setdefault(self._places[name], []).append(name)
        for path, inside in wanted.items():
            self._opened[path].will_need(inside)


def open_weights(path: str | os.PathLike[str]) -> CheckpointWeights:
    """Return the weights that ``path`` holds: a folder, one file of weights, or an index of several.

    What is looked for in a folder says `accel_core.weights.index.locate`. Of safetensors, the headers are
    read and checked; other files are read by ``torch.load(weights_only=True)``.

    Raises CheckpointError for files that are missing, damaged or no weights, and for an index that leads
    out of its folder or says what its files do not.
    """
    found = locate(path)
    parts = {file: _part(file) for file in found.files}
    return CheckpointWeights(found.source, parts, found.assign(parts))


def _part(path: Path) -> _File:
    real = real_file(path)
    return MappedFile(real) if path.suffix == SAFE.ending else PickledFile(real)


__all__ = ["CheckpointWeights", "open_weights"]
