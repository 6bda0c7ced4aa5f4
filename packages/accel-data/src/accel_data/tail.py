"""What a walk over the batches of a rank knows of where it stands, and of its last batch."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any
from zlib import crc32

from accel_core.cursor import LoaderCursor

FIRST = 64
"""Indices at the start of an order by which orders are compared."""


class Tail:
    """What a walk knows about its last batch; complete once the walk has ended."""

    __slots__ = (
        "base",
        "begins",
        "count",
        "ends",
        "fingerprint",
        "parts",
        "stride",
        "total",
        "valid",
        "walked",
    )

    def __init__(self) -> None:
        self.valid: int | None = None
        """Real samples of the last batch over all ranks; None when all are."""
        self.parts: list[int] | None = None
        """Samples of each rank in the last round, padding included, which comes last; None when not known."""
        self.walked = False
        """The order came from a sampler that is walked, so ranks could disagree on it."""
        self.fingerprint = 0
        """A checksum of the first round of a walk."""
        self.begins: Sequence[Any] | None = None
        """The first indices of the whole order, or more of them; None before the first batch."""
        self.count: int | None = None
        """Batches of this rank in the walk, where arithmetic tells; None: nobody knows before its end."""
        self.base = self.stride = self.total = 0
        """Where rounds begin in the order, the samples of a full one, and those of the order."""
        self.ends: array[int] | None = None
        """How many samples of the order there are up to the end of each batch, where it is walked."""

    @property
    def first(self) -> list[Any] | None:
        """The first indices of the order that all ranks divide between them; None: not known."""
        return None if self.begins is None else list(self.begins[:FIRST])

    @property
    def world_batch(self) -> int | None:
        """Samples of the last batch over all ranks, padding included; None when not known."""
        return None if self.parts is None else sum(self.parts)

    def consumed(self, number: int) -> int | None:
        """Return how many samples of the order all ranks have had after ``number`` batches of the walk."""
        if not number:
            return self.base
        if self.ends is not None:
            return self.ends[number - 1] if number <= len(self.ends) else None
        return min(self.base + number * self.stride, self.total) if self.stride else None

    def mark(self, samples: int) -> int | None:
        """Return a checksum of how the order begins, up to ``samples``; None when it is not known."""
        first = self.first or []
        count = min(samples, FIRST)
        return None if len(first) < count else crc32(repr(first[:count]).encode())

    def tell(self, cursor: LoaderCursor, rank: int) -> None:
        """Tell ``cursor`` of the last batch of ``rank``; it speaks of the full batch before.

        A rank without a part in the last round has ended with the round before, which was full.
        """
        if self.parts is None:
            cursor.world_batch = cursor.rows = None
        elif self.parts[rank]:
            cursor.world_batch, cursor.rows = sum(self.parts), self.parts[rank]
            cursor.ended = tuple(place for place, size in enumerate(self.parts) if not size)
            if self.valid is not None:
                cursor.valid = self.valid
                real = min(max(self.valid - sum(self.parts[:rank]), 0), cursor.rows)
                cursor.own = None if real == cursor.rows else real


__all__ = ["FIRST", "Tail"]
