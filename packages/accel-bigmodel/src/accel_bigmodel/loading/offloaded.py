"""Weights that are read when they are used, from the checkpoint's own files, under the model's names."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .naming import Translated


class OffloadedWeights(Mapping[str, torch.Tensor]):
    """``entries`` of ``weights``: for each name that of its value, and the dtype that it is used in.

    What has that dtype already is the pages of its file, the same for every name that it has.
    """

    def __init__(
        self, weights: Mapping[str, torch.Tensor], entries: Mapping[str, tuple[str, torch.dtype]]
    ) -> None:
        self.weights = weights
        self.entries = entries

    def __getitem__(self, name: str) -> torch.Tensor:
        source, dtype = self.entries[name]
        return self.weights[source].to(dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __repr__(self) -> str:
        return f"<OffloadedWeights, {len(self)} of {self.weights!r}>"

    def will_need(self, names: Iterable[str]) -> None:
        """Ask the system to read the pages of these tensors ahead. Never fails."""
        ask = getattr(self.weights, "will_need", None)
        if ask is not None:
            ask([self.entries[name][0] for name in names if name in self.entries])


_Folder = str | os.PathLike[str] | None
_left: weakref.WeakKeyDictionary[nn.Module, tuple[dict[str, Any], _Folder]] = weakref.WeakKeyDictionary()


def described(weights: Translated, entries: Mapping[str, tuple[str, torch.dtype]]) -> dict[str, Any]:
    """Return the index of those ``entries`` that can be used in the files of the checkpoint."""
    index: dict[str, Any] = {}
    for name, (source, dtype) in entries.items():
        place = weights.location(source)
        if place is not None:
            kind = str(dtype).removeprefix("torch.")
            stored = weights.stored_name(source)
            index[name] = {"safetensors_file": str(place.file), "weight_name": stored, "dtype": kind}
    return index


def remember(model: nn.Module, index: dict[str, Any], folder: _Folder) -> None:
    """Keep in mind where a load left the weights of ``model``, for `dispatch_model` to find them."""
    _left[model] = (index, folder)


def left_in_files(model: nn.Module) -> tuple[dict[str, Any], _Folder]:
    """Return the index of the weights of ``model`` that a load left in files, and the folder of copies."""
    index, folder = _left.get(model, ({}, None))
    return dict(index), folder


__all__ = ["OffloadedWeights", "described", "left_in_files", "remember"]
