"""What is known of the tensors of a model without reading them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from accel_core.errors import CheckpointError

from .bits import BITS


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A tensor as a header has it: its type, in the words of safetensors (``F32``, ``BF16``), and shape."""

    code: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Return how many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Return the bytes that it takes as it is stored."""
        return (self.elements * BITS[self.code] + 7) // 8


@dataclass(frozen=True, slots=True)
class ModelHeaders:
    """The tensors of a model and what its ``config.json`` says; an empty ``config`` when there is none.

    A tensor that several names share is in ``tensors`` under one of them; ``aliases`` leads there from the
    others. ``source`` says in a few words where all this is from, ``library`` which library the repository
    says it is for. ``notes`` are for the reader of an estimate.
    """

    tensors: Mapping[str, TensorShape]
    config: Mapping[str, Any]
    source: str
    library: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Return the bytes of all tensors as they are stored."""
        return sum(tensor.bytes for tensor in self.tensors.values())


class NoHeadersError(CheckpointError):
    """Report a model whose weights have no headers to read; ``config`` is what is known of it."""

    def __init__(
        self, what: str, *, config: Mapping[str, Any], library: str = "", where: str = "", fix: str = ""
    ) -> None:
        self.config = config
        self.library = library
        super().__init__(what, where=where, fix=fix)


__all__ = ["ModelHeaders", "NoHeadersError", "TensorShape"]
