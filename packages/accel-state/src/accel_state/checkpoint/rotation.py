"""Which checkpoints may go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from accel_core.errors import CheckpointError, ConfigError, Fault

from .listing import Listed
from .verify import faults


class Numbered(Protocol):
    """A checkpoint in a list, with its place in the order of commits where that is known."""

    @property
    def number(self) -> int | None:
        """Return its place."""
        ...


_Each = TypeVar("_Each", bound=Numbered)


def surplus(found: Sequence[Listed], keep: int) -> list[Path]:
    """Return the checkpoints of folders that may go, as `older` has it."""
    return [each.path for each in older(found, keep, _good)]


def older(found: Sequence[_Each], keep: int, good: Callable[[_Each], bool]) -> list[_Each]:
    """Return the checkpoints older than the ``keep`` newest good ones; ``found`` begins with the oldest.

    What is damaged does not count as kept, so the newest good one always stays. What cannot tell its
    place among the others is not removed.
    """
    if keep < 1:
        raise ConfigError("rotate", [Fault("keep", keep, "at least one checkpoint is kept")])
    count = 0
    for place in range(len(found) - 1, -1, -1):
        count += good(found[place])
        if count == keep:
            return [old for old in found[:place] if old.number is not None]
    return []


def _good(each: Listed) -> bool:
    try:
        return not faults(each.path, each.manifest(), "sizes")
    except CheckpointError:
        return False


__all__ = ["older", "surplus"]
