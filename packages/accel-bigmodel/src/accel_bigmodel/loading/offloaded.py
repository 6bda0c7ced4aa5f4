"""Weights that are read when they are used, from the checkpoint's own files, under the model's names."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn


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


_remembered: weakref.WeakKeyDictionary[nn.Module, OffloadedWeights] = weakref.WeakKeyDictionary()


def remember(model: nn.Module, weights: OffloadedWeights) -> None:
    """Keep the weights of ``model`` that were left in their files, for `dispatch_model`."""
    _remembered[model] = weights


def remembered(model: nn.Module) -> OffloadedWeights | None:
    """Return the weights of ``model`` that a load left in their files, if it did."""
    return _remembered.get(model)


__all__ = ["OffloadedWeights", "remember", "remembered"]
