"""Limits under which devices, filled one after the other, hold about as much each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .outline import Columns
from .packing import reach


def balanced(columns: Columns, limits: Sequence[int], *, low_first: bool = False) -> list[int]:
    """Return limits that spread the model: the fullest device holds as little as it can.

    The last device keeps its limit, so that a caller who lowers the others a little still fits.
    ``low_first``: the first device gets only what the others have no room for. Limits that cannot hold the
    whole model come back as they are.
    """
    sums = columns.totals().resident
    last = len(sums) - 1

    def fits(trial: Sequence[int]) -> bool:
        return reach(sums, trial)[-1] == last

    if len(limits) < 2 or not fits(limits):
        return list(limits)
    head: list[int] = []
    rest = list(limits)
    if low_first:
        head = [_least(limits[0], lambda first: fits([first, *limits[1:]]))]
        rest = rest[1:]
    most = _least(max(rest), lambda level: fits([*head, *(min(limit, level) for limit in rest)]))
    return [*head, *(min(limit, most) for limit in rest[:-1]), rest[-1]]


def _least(highest: int, fits: Callable[[int], bool]) -> int:
    """Return the least number that fits, given that ``highest`` does."""
    low, high = 0, highest
    while low < high:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle + 1
    return low


__all__ = ["balanced"]
