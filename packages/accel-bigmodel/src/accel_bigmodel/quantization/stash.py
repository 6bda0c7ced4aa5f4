"""What is offloaded: kept in memory, on disk, or in the checkpoint where it is already."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from ..offload.folder import offload_weight, save_offload_index
from ..offload.loader import OffloadedWeightsLoader
from ..weights.reader import CheckpointWeights


class Stash:
    """Collects offloaded tensors by the names that they have in the model. ``folder``: for those on disk."""

    def __init__(self, source: Mapping[str, torch.Tensor], folder: str | os.PathLike[str] | None) -> None:
        self.source = source
        self.folder = folder
        self._held: dict[str, torch.Tensor] = {}
        self._index: dict[str, Any] = {}
        self._written: dict[str, Any] = {}

    def mapped(self, stored: str, dtype: torch.dtype) -> bool:
        """Tell whether the source has these bytes in a file that can be used as it is."""
        if not isinstance(self.source, CheckpointWeights):
            return False
        place = self.source.location(stored)
        return place is not None and place.dtype == dtype

    def refer(self, name: str, stored: str) -> None:
        """Leave a tensor of the source where it is, in its file."""
        assert isinstance(self.source, CheckpointWeights)
        place = self.source.location(stored)
        assert place is not None
        dtype = str(place.dtype).removeprefix("torch.")
        kept = self.source.same_as(stored)
        self._index[name] = {"safetensors_file": str(place.file), "weight_name": kept, "dtype": dtype}

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        """Keep a tensor in memory."""
        self._held[name] = tensor.detach().to("cpu")

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor to the folder."""
        assert self.folder is not None
        offload_weight(tensor, name, self.folder, self._written)

    def close(self) -> Mapping[str, torch.Tensor]:
        """Return everything by name."""
        if self._written:
            assert self.folder is not None
            save_offload_index(self._written, self.folder)
        return OffloadedWeightsLoader(self._held, self.folder, {**self._index, **self._written})


__all__ = ["Stash"]
