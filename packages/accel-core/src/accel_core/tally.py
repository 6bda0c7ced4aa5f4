"""How many samples all ranks have read for the updates of one accumulation window after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .window import LoaderCursor


class SampleTally:
    """Count the real samples that the running loader has handed out to all ranks, padding left out.

    Only what gradients come from is looked at: a loader is noted in each backward and each step, and
    counts with everything it has handed out since it was last noted. An evaluation in between is
    another loader, which nobody notes. Exists only where a schedule asks for it.
    """

    __slots__ = ("notes", "total", "unknown")

    def __init__(self, running: Iterable[LoaderCursor] = ()) -> None:
        self.total = 0
        """Samples so far."""
        self.notes = 0
        """Batches that were looked at, the same one again included."""
        self.unknown = 0
        """Backwards whose samples nobody can count."""
        for cursor in running:
            cursor.counted = cursor.samples or 0

    def note(self, cursor: LoaderCursor | None, *, needed: bool) -> None:
        """Count what ``cursor`` has handed out since it was last noted.

        ``needed``: a batch must be in hand; otherwise it may have been noted before its loop ended.
        """
        if cursor is None or cursor.samples is None:
            self.unknown += needed
            return
        self.notes += 1
        self.total += cursor.samples - cursor.counted
        cursor.counted = cursor.samples


__all__ = ["SampleTally"]
