"""When to stop before the work is done: asked by signals, deadlines and hooks, agreed by all ranks."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from accel_core.config import PreemptionKwargs
from accel_core.errors import CollectiveError, StateError
from accel_core.logging import get_logger
from accel_core.protocols import LonelyCollectives

from . import process
from .deadline import Deadline
from .stop_signals import StopSignals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accel_core.protocols import Collectives

logger = get_logger(__name__)

_KINDS = ("", "signal", "request", "hook", "deadline")
_NOWHERE = 0
_LONGEST = (1 << 26) - 1
EVERY = 0.15
"""Seconds from vote to vote: one wakes a thread, which a step of a few milliseconds would feel."""
_MOST = 16
"""Checks that one vote may be for: when steps become slower all at once, a stop waits for twice as many."""


@dataclass(frozen=True, slots=True)
class StopReason:
    """Why the ranks stop: ``kind`` is signal, request, hook or deadline; ``rank`` the first that said so."""

    kind: str
    text: str
    rank: int

    def __str__(self) -> str:
        return f"{self.text}, rank {self.rank}"


class PreemptionGuard:
    """Tell all ranks at the same step that the run is to stop.

    ``check`` is collective: all ranks call it equally often. It waits for nobody that keeps up: ranks vote
    at one check and hear each other's votes at the next, so that a stop is known one check later than it
    was wanted; on one process at once. Where checks follow each other faster than ``every`` seconds, a vote
    is for several, as many as all ranks work out of the votes before, and never for more than 16.

    ``collectives``: the ranks that have to agree. ``again_after``: as for `StopSignals`. Signals are
    watched from here on, where this is the main thread.
    """

    def __init__(
        self,
        settings: PreemptionKwargs | None = None,
        collectives: Collectives | None = None,
        *,
        every: float = EVERY,
        again_after: float = 5.0,
    ) -> None:
        self.settings = settings or PreemptionKwargs()
        self.reason: StopReason | None = None
        """Why the ranks stop, as soon as all know that they do."""
        self.saved: str | None = None
        """Where the latest save went, as far as `note_save` was told."""
        self.step: int | None = None
        self.group: Collectives = collectives or LonelyCollectives()
        self.signals = StopSignals(self.settings.signals, again_after=again_after)
        self._deadline = Deadline(self.settings)
        self._timed = self._deadline.text != ""
        self._hooks: list[Callable[[], object]] = []
        self._kind, self._text = 0, ""
        self._channel: Collectives | None = None
        self._answers: Callable[[], list[int]] | None = None
        self._every = every
        self._checks, self._left = 1, 1
        self._voted = 0.0
        self.signals.watch()

    # -- what may ask for a stop -----------------------------------------------------------------

    def request_stop(self, reason: str = "requested") -> None:
        """Ask all ranks to stop; one rank is enough."""
        self._want("request", str(reason) or "requested")

    def stop_when(self, hook: Callable[[], object]) -> Callable[[], object]:
        """Ask ``hook`` at every check: what it returns, if true, asks all ranks to stop. Return it.

        A text is the reason. It is called on the rank that gave it, in the loop, so it must be quick.
        """
        if not callable(hook):
            raise TypeError(f"stop_when needs something to call, not {hook!r}")
        self._hooks.append(hook)
        return hook

    def note_save(self, seconds: float, path: str | None = None, step: int | None = None) -> None:
        """Note how long a save took: before a deadline 1.5 times the longest is kept for the last one."""
        self._deadline.longest_save = max(self._deadline.longest_save, float(seconds))
        if path is not None:
            self.saved, self.step = path, step

    # -- the check -------------------------------------------------------------------------------

    def check(self, place: int = _NOWHERE) -> bool:
        """Return whether the ranks stop here. Collective, as said above.

        ``place``: a number that must be equal on all ranks, from 1, such as that of the batch; 0 is not
        compared. Raises CollectiveError on all ranks when places differ, and when a rank does not come.
        """
        if self.reason is not None:
            return True
        if self.group.world_size > 1:
            self._left -= 1
            return self._left <= 0 and self._vote(place)
        if not self._kind:
            self._look()
        if self._kind:
            self._stop(0, self._text, self._kind)
        return self.reason is not None

    def _vote(self, place: int) -> bool:
        """Hear the vote before this one, and cast the next."""
        if self._channel is None or getattr(self._channel, "process_group", self) is None:
            self._answers = None  # the ranks left their group, and met in a new one
            # Their own, so that votes of ranks that ask unequally often are not taken for a loader's.
            self._channel = self.group.group(range(self.group.world_size))
        answers, self._answers = self._answers, None
        if answers is not None and self._agreed(self._heard(answers)):
            return True
        if not self._kind:
            self._look()
        now = time.monotonic()
        spent = (now - self._voted) / self._checks if self._voted else inf
        self._voted, self._left = now, self._checks
        with _explained():
            self._answers = self._channel.vote(_Ballot(self._kind, spent, place).encoded())
        return False

    def _look(self) -> None:
        received = self.signals.received
        if received is not None:
            self._want("signal", received.name)
            return
        for hook in self._hooks:
            said = hook()
            if said:
                self._want("hook", said if isinstance(said, str) else getattr(hook, "__name__", "a hook"))
                return
        if self._timed and self._deadline.near():
            self._want("deadline", self._deadline.text)

    def _want(self, kind: str, text: str) -> None:
        if not self._kind:
            self._kind, self._text = _KINDS.index(kind), text

    @staticmethod
    def _heard(answers: Callable[[], list[int]]) -> list[int]:
        with _explained():
            return answers()

    def _agreed(self, votes: list[int]) -> bool:
        ballots = [_Ballot.of(vote) for vote in votes]
        places = [ballot.place for ballot in ballots]
        if len(set(places)) > 1:
            raise _apart(places, self.group.rank)
        rank = next((rank for rank, ballot in enumerate(ballots) if ballot.kind), None)
        if rank is None:
            slowest = max(ballot.spent for ballot in ballots)
            self._checks = max(1, min(_MOST, int(self._every / slowest)))
            return False
        assert self._channel is not None
        self._stop(rank, self._channel.broadcast_object(self._text, src=rank), ballots[rank].kind)
        return True

    def _stop(self, rank: int, text: str, kind: int) -> None:
        self.reason = StopReason(_KINDS[kind], text, rank)
        logger.warning("Stopping: %s", self.reason)

    # -- the end ---------------------------------------------------------------------------------

    def close(self, *, wait: bool = False) -> None:
        """Give the signals back; with ``wait`` see the open vote through, before the group is left."""
        self.signals.close()
        answers, self._answers = self._answers, None
        if wait and answers is not None:
            try:
                self._heard(answers)
            except CollectiveError as error:
                logger.warning("%s", error, main_process_only=False)
        channel, self._channel = self._channel, None
        let_go = getattr(channel, "close", None)
        if let_go is not None:
            let_go()


class _Ballot(NamedTuple):
    """What a rank says in one number."""

    kind: int
    """Why it wants to stop, by place in the list of kinds; 0 when it does not."""
    spent: float
    """Seconds from check to check; microseconds in the number, no more than a minute of them."""
    place: int

    @classmethod
    def of(cls, vote: int) -> _Ballot:
        return cls(vote & 7, (vote >> 3 & _LONGEST) / 1e6, vote >> 29)

    def encoded(self) -> int:
        spent = max(1, int(min(self.spent * 1e6, _LONGEST)))
        return self.kind | spent << 3 | self.place << 29


@contextmanager
def _explained() -> Iterator[None]:
    """Say of an error between the ranks which of the program's lines it is about."""
    try:
        yield
    except CollectiveError as error:
        error.what = f"should_stop: {error.what}"
        error.fix = f"ask for should_stop equally often on all ranks; {error.fix}"
        raise


def _apart(places: Sequence[int], rank: int) -> CollectiveError:
    return CollectiveError(
        "should_stop was asked for at different batches",
        per_rank=list(places),
        where=f"rank {rank} of {len(places)}; batches by rank: {', '.join(map(str, places))}",
        fix="ask for it equally often on all ranks",
    )


# -- one for this process ------------------------------------------------------------------------------

_current: PreemptionGuard | None = None


def current() -> PreemptionGuard | None:
    """Return the guard of this process, or None before `start`."""
    return _current


def start(
    settings: PreemptionKwargs | None = None, collectives: Collectives | None = None
) -> PreemptionGuard:
    """Return the guard of this process, made by the first call; signals belong to the whole process.

    Raises StateError for settings that differ from those it was made with.
    """
    global _current
    if _current is None:
        _current = PreemptionGuard(settings, collectives)
    elif settings is not None and settings != _current.settings:
        raise StateError(
            f"This process is guarded already, with {_current.settings}",
            where=str(settings),
            fix="give PreemptionKwargs to the first Accelerator of the process",
        )
    return _current


def close() -> None:
    """Give the signals back and forget the guard."""
    global _current
    guard, _current = _current, None
    if guard is not None:
        guard.close()


def _leave() -> None:
    # The group is left next. After an error nobody is waited for.
    if _current is not None and not hasattr(sys, "last_value"):
        _current.close(wait=True)


process.at_reset(close)
atexit.register(_leave)

__all__ = ["PreemptionGuard", "StopReason", "close", "current", "start"]
