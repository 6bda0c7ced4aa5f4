"""Which batch sizes are tried, in which order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from accel_core.errors import ConfigError, Fault

_OWNER = "find_executable_batch_size"


class Sizes:
    """The batch sizes from ``start`` down.

    By half, rounded down; by what ``reduce`` returns; or, with ``divisors``, by the divisors of ``start``.
    """

    def __init__(
        self, start: int, reduce: Callable[..., int] | None = None, *, divisors: bool = False
    ) -> None:
        faults = []
        given: Any = reduce
        if not _whole(start) or start < 1:
            faults.append(Fault("starting_batch_size", start, "must be a whole number of at least 1"))
        if given is not None and not callable(given):
            faults.append(Fault("reduce_batch_size_fn", reduce, "must be a function"))
        if faults:
            raise ConfigError(_OWNER, faults)
        self.start = start
        self._reduce = reduce
        self._divisors = [size for size in range(1, start + 1) if start % size == 0] if divisors else None

    def below(self, size: int) -> int:
        """Return the size to try after ``size`` did not fit; 0 when there is none."""
        if self._reduce is not None:
            return _checked(self._reduce, size)
        if self._divisors is not None:
            return max((divisor for divisor in self._divisors if divisor < size), default=0)
        return size // 2

    def ladder(self) -> Sequence[int]:
        """Return every size that may be the answer, the smallest first."""
        return self._divisors or range(1, self.start + 1)


def largest(ladder: Sequence[int], fits: Callable[[int], bool]) -> int:
    """Return the largest of ``ladder`` that fits, 0 for none, in about log2(len(ladder)) questions.

    Assumes that whatever is smaller than a size that fits does too.
    """
    if fits(ladder[-1]):
        return ladder[-1]
    low, high = 0, len(ladder) - 1  # all below low fit, high does not
    while low < high:
        middle = (low + high) // 2
        if fits(ladder[middle]):
            low = middle + 1
        else:
            high = middle
    return ladder[low - 1] if low else 0


def _checked(reduce: Callable[..., int], size: int) -> int:
    """Return what the user's ``reduce`` makes of ``size``; it takes nothing, or the size that did not fit."""
    new = reduce() if _takes_nothing(reduce) else reduce(size)
    if not _whole(new):
        raise ConfigError(_OWNER, [Fault("reduce_batch_size_fn()", new, "must return a whole number")])
    if new >= size:
        reason = f"must return less than {size}, which did not fit"
        raise ConfigError(_OWNER, [Fault("reduce_batch_size_fn()", new, reason)])
    return max(new, 0)


def _takes_nothing(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


__all__ = ["Sizes", "largest"]
