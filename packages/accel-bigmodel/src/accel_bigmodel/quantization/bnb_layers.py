"""What a layer of bitsandbytes is made of and how, in 8 or in 4 bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn

from .parted import PartedLinear

Parts = Mapping[str, torch.Tensor]


class Kind(ABC):
    """8 or 4 bits."""

    text: str
    """As `formats.kind` calls it."""

    def refusal(self, linear: nn.Linear) -> str:
        """Return why a layer cannot be quantized; nothing, but for layers without any weight."""
        return "" if linear.in_features and linear.out_features else "it has no weights"

    @abstractmethod
    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parts of a weight."""

    @abstractmethod
    def stored(self, linear: nn.Linear, found: Parts, where: str) -> dict[str, torch.Tensor]:
        """Return the parts of what a checkpoint has, checked."""

    @abstractmethod
    def fixed(self, linear: nn.Linear, parts: Parts) -> nn.Linear:
        """Return a layer of bitsandbytes."""

    @abstractmethod
    def movable(self, linear: nn.Linear, parts: Parts) -> PartedLinear:
        """Return a layer with plain parameters."""


__all__ = ["Kind", "Parts"]
