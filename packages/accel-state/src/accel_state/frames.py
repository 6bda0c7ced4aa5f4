"""Where in the user's code a call came from; looked up for errors and where ranks are compared."""

from __future__ import annotations

import sys
from types import FrameType

_OURS = frozenset(
    {
        "accel", "accel_bigmodel", "accel_cli", "accel_core", "accel_data", "accel_parallel",
        "accel_precision", "accel_state", "accel_trackers", "contextlib", "functools", "torch",
    }
)  # fmt: skip


def user_line(start: FrameType | None = None) -> str:
    """Return ``file:line`` of the nearest frame, ``start`` or further out, that is not accel's or torch's."""
    frame: FrameType | None = start or sys._getframe(1)
    last = frame
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _OURS:
            break
        last, frame = frame, frame.f_back
    found = frame or last
    return f"{found.f_code.co_filename}:{found.f_lineno}" if found is not None else "unknown line"


__all__ = ["user_line"]
