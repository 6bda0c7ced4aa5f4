"""Which checkpoints may go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accel_core.errors import CheckpointError, ConfigError, Fault

from .listing import Listed
from .verify import faults


def surplus(found: Sequence[Listed], keep: int) -> list[Path]:
    """Return the checkpoints older than the ``keep`` newest good ones; ``found`` begins with the oldest.

    What is damaged does not count as kept, so the newest good one always stays. What cannot tell its
    place among the others is not removed.
    """
    if keep < 1:
        raise ConfigError("rotate", [Fault("keep", keep, "at least one checkpoint is kept")])
    good = 0
    for place in range(len(found) - 1, -1, -1):
        each = found[place]
        good += _good(each)
        if good == keep:
            return [old.path for old in found[:place] if old.number is not None]
    return []


def _good(each: Listed) -> bool:
    try:
        return not faults(each.path, each.manifest(), "sizes")
    except CheckpointError:
        return False


__all__ = ["surplus"]
