"""What one step of a learning rate schedule stands for: an update, a sample or a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from accel_core.errors import StateError
from accel_core.tally import SampleTally
from accel_core.window import GradientWindow


class Meter(Protocol):
    """Tell how far an update moves a schedule."""

    marks: tuple[int, ...]
    """How far it has looked: what a run that goes on must know of the window that is open."""

    def take(self) -> int:
        """Return the units of the update that was just computed, once."""
        ...


class Updates:
    """Every update is one step, on any number of processes."""

    marks: tuple[int, ...] = ()

    def __init__(self, window: GradientWindow) -> None:
        del window

    def take(self) -> int:
        """Return 1."""
        return 1


class Samples:
    """Every sample that any rank has read since the latest step; padding does not count."""

    def __init__(self, window: GradientWindow) -> None:
        if window.tally is None:
            window.tally = SampleTally(window.cursors)
        self._tally = window.tally
        self.marks: tuple[int, ...] = self._now()

    def _now(self) -> tuple[int, int, int]:
        return self._tally.total, self._tally.notes, self._tally.unknown

    def take(self) -> int:
        """Return the samples since the latest call.

        Raises StateError when they are not known, and when no batch was used since: a schedule that
        stands still in silence is worse.
        """
        seen, notes, unknown = self.marks
        total, noted, unknown_now = self.marks = self._now()
        if unknown_now != unknown:
            raise StateError(
                "The schedule counts samples, but nobody knows how many this update was computed from",
                where=f"{unknown_now - unknown} backward(s) outside of the loop over a prepared loader, or"
                " over one whose batches have no known size",
                fix="iterate over the prepared loader while you train, or use schedule_in='updates', or"
                " 'tokens' with backward(loss, weight=n)",
            )
        if noted == notes:
            raise StateError(
                "The schedule counts samples, but none were used since its latest step",
                where="scheduler.step()",
                fix="call it once per update, after accelerator.backward() and optimizer.step()",
            )
        return total - seen


class Tokens:
    """Every unit of weight that was given to ``backward`` for the update, on all ranks together."""

    def __init__(self, window: GradientWindow) -> None:
        self._window = window
        self.marks: tuple[int, ...] = (window.weighings,)

    def take(self) -> int:
        """Return the total weight of the window that was closed since the latest call.

        Raises StateError when there is none, or when it is no whole number.
        """
        window, (seen,) = self._window, self.marks
        self.marks = (window.weighings,)
        if window.weight is None or window.weighings == seen:
            raise StateError(
                "The schedule counts tokens, but backward() was given no weight for this update",
                where="scheduler.step()",
                fix="backward(loss, weight=number_of_tokens), and step the scheduler once per update; or use"
                " schedule_in='updates' or 'samples'",
            )
        if not window.weight.is_integer():
            raise StateError(
                f"The schedule counts tokens, but the weights of this update add up to {window.weight!r}",
                where="backward(loss, weight=...)",
                fix="give whole numbers as weights, or use schedule_in='updates' or 'samples'",
            )
        return int(window.weight)


UNITS: Mapping[str, Callable[[GradientWindow], Meter]] = {
    "updates": Updates,
    "samples": Samples,
    "tokens": Tokens,
}

__all__ = ["UNITS", "Meter", "Samples", "Tokens", "Updates"]
