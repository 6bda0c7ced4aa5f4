"""Whether this process waits for pages that are not in memory."""

from __future__ import annotations

try:
    import resource
except ImportError:  # not on Windows, where nothing is asked ahead
    resource = None  # type: ignore[assignment]

_LASTS = 64
"""Blocks for which pages are asked ahead after one had to wait."""


class Cold:
    """Tell whether pages had to be read lately: asking for those that are there takes time for nothing."""

    def __init__(self) -> None:
        self._seen = _waits()
        self._left = 0

    def look(self) -> bool:
        """Return whether this process had to wait for a page within the last blocks."""
        now = _waits()
        if now != self._seen:
            self._seen = now
            self._left = _LASTS
        elif self._left:
            self._left -= 1
        return self._left > 0


def _waits() -> int:
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_majflt


__all__ = ["Cold"]
