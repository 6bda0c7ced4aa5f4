"""Which block comes next: what came next before, after the same blocks."""

from __future__ import annotations

_LENGTHS = (16, 4, 1)
_MOST = 1 << 14


class Order:
    """Learn the order of blocks while they pass, and learn it anew when it changes.

    The next one is told by the blocks before: the last sixteen, or four, or one. So a block that is used
    several times in a pass is no riddle, and branches that are taken at random cost a wrong guess only.
    """

    def __init__(self) -> None:
        self._recent: tuple[int, ...] = ()
        self._after: dict[tuple[int, ...], int] = {}

    def saw(self, block: int) -> None:
        """Note that ``block`` came next."""
        if len(self._after) > _MOST:
            self._after.clear()
        for length in _LENGTHS:
            if len(self._recent) >= length:
                self._after[self._recent[-length:]] = block
        self._recent = (*self._recent, block)[-_LENGTHS[0] :]

    @property
    def last(self) -> int:
        """Return the block that came last; -1 before the first."""
        return self._recent[-1] if self._recent else -1

    def guess(self, ahead: tuple[int, ...] = ()) -> int | None:
        """Return what comes after the blocks ``ahead``, if those come next; None for what was never seen."""
        recent = self._recent + ahead
        for length in _LENGTHS:
            found = self._after.get(recent[-length:])
            if found is not None:
                return found
        return None


__all__ = ["Order"]
