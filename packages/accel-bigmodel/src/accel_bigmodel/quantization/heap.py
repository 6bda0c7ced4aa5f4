"""Memory that was freed, given back to the system while a model is quantized on the CPU."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


class Heap:
    """Counts bytes that passed through memory, and gives freed memory back now and then.

    What is kept of each weight lies between what is dropped, and the C library holds on to the latter: of a
    model of some gigabytes, hundreds of megabytes.
    """

    every = 128 << 20
    """How many bytes; each time, what is used next has to be given by the system again."""

    def __init__(self) -> None:
        self._passed = 0

    def passed(self, size: int) -> None:
        """Note that ``size`` bytes were made and dropped."""
        self._passed += size
        if self._passed >= self.every:
            self._passed = 0
            trim = _trim()
            if trim is not None:
                trim(0)


@cache
def _trim() -> Any:
    # Only the C library of GNU has it.
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):
        return None


__all__ = ["Heap"]
