"""What ``torch.save`` wrote, if it is tensors by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from accel_core.weights.pickled import load_named


class PickledFile(dict[str, torch.Tensor]):
    """The tensors of one such file on the CPU, mapped where the format allows it; none has a location.

    Raises CheckpointError for a file that is damaged, or holds more than tensors by name.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(load_named(path, torch.load, torch.Tensor))
        self.path = path
        # Pickles keep it when one tensor is stored under several names.
        first: dict[tuple[object, ...], str] = {}
        self.tied = {
            name: kept
            for name, value in self.items()
            if value.numel() and (kept := first.setdefault(_memory(value), name)) != name
        }

    def location(self, name: str) -> None:
        """Return None: what a program of pickles puts where is its own business."""

    def will_need(self, names: Iterable[str]) -> None:
        """Do nothing."""


def _memory(tensor: torch.Tensor) -> tuple[object, ...]:
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


__all__ = ["PickledFile"]
