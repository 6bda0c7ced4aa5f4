"""What ``torch.save`` wrote, if it is tensors by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from accel_core.errors import CheckpointError
from accel_core.weights.pickled import load_plain


class PickledFile(dict[str, torch.Tensor]):
    """The tensors of one such file on the CPU, mapped where the format allows it; none has a location.

    Raises CheckpointError for a file that is damaged, or holds more than tensors by name.
    """

    def __init__(self, path: Path) -> None:
        found = load_plain(path, torch.load)
        if not isinstance(found, Mapping):
            raise CheckpointError(
                f"{path.name} holds a {type(found).__name__}, no tensors by name", where=str(path)
            )
        for name, value in found.items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor):
                raise CheckpointError(
                    f"{path.name} holds more than tensors by name: {name!r} is a {type(value).__name__}",
                    where=str(path),
                    fix="take the state dict of the model out of it, and save that",
                )
        super().__init__(found)
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
