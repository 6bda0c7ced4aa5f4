"""Large pages for what is read into new memory, where the machine is faster with them."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

_HUGE_PAGES = 14  # MADV_HUGEPAGE of Linux, which mmap names on some systems only
_ALIGNED = 2 << 20
_TRIED = 32 << 20
"""Bytes that are read in each way before the better one is taken."""


class Pages:
    """Which of two ways was faster in this load: memory handed over 4 kilobytes at a time, or 2 megabytes.

    To hand over small pages takes the system longer than to read what goes into them. But where a virtual
    machine gives free memory back to its host, large pages are those that the host has to find first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = {True: 0, False: 0}
        self._seconds = {True: 0.0, False: 0.0}

    def choose(self) -> bool:
        """Return whether the next piece gets large pages."""
        with self._lock:
            fewer = self._bytes[True] <= self._bytes[False]
            if self._bytes[fewer] < _TRIED:
                return fewer
            return self._rate(large=True) <= self._rate(large=False)

    def _rate(self, *, large: bool) -> float:
        return self._seconds[large] / self._bytes[large]

    def note(self, large: bool, count: int, seconds: float) -> None:
        """Take down how long ``count`` bytes took."""
        with self._lock:
            self._bytes[large] += count
            self._seconds[large] += seconds


def ask_for_large(address: int, count: int) -> None:
    """Ask the system to give this memory in large pages; it may, and nothing depends on it."""
    advise = _advise()
    first = -(-address // _ALIGNED) * _ALIGNED
    length = (address + count - first) // _ALIGNED * _ALIGNED
    if advise is not None and length > 0:
        advise(first, length)


@cache
def _advise() -> Callable[[int, int], Any] | None:
    if sys.platform != "linux":
        return None
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None:
        return None
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return lambda address, size: madvise(address, size, _HUGE_PAGES)


__all__ = ["Pages", "ask_for_large"]
