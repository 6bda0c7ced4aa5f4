"""Signals that ask a program to come to an end, noted instead of obeyed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

from accel_core.logging import get_logger

logger = get_logger(__name__)

_KILLS = frozenset(
    number
    for number in (getattr(signal, name, None) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"))
    if number is not None
)
"""Signals that whoever waits in vain sends again; a second one of another kind is a reminder only."""


class StopSignals:
    """Note the first signal that comes; a later SIGTERM does again what it did before.

    ``again_after``: seconds within which a second one is taken for the first: a scheduler may signal every
    process of a job, and the launcher, one of them, passes its own on.

    What a forked child gets is not noted. There SIGTERM does what it did, and SIGUSR1 nothing: a
    scheduler that sends it to every process means the training, and not the workers of its loaders.
    """

    def __init__(self, names: Sequence[str], *, again_after: float = 5.0) -> None:
        self.names = tuple(names)
        self.again_after = again_after
        self.received: signal.Signals | None = None
        """The first signal that came."""
        self._before: dict[int, Any] = {}
        self._first: dict[int, float] = {}
        self._owner = 0

    def watch(self) -> None:
        """Install the handlers; a handler of the user's is called after ours. In the main thread only.

        Python lets no other thread do that: there a warning says that signals act as before.
        """
        if self._before or not self.names:
            return
        if threading.current_thread() is not threading.main_thread():
            logger.warning(
                "%s will end this process as before: should_stop was first asked for in the thread %r, and"
                " Python sets handlers in the main thread only. Deadlines and hooks are heeded.",
                " and ".join(self.names),
                threading.current_thread().name,
                main_process_only=False,
            )
            return
        self._owner = os.getpid()
        for name in self.names:
            number = getattr(signal, name, None)
            if number is not None:  # Windows has few of them
                self._before[number] = signal.signal(number, self._handle)

    def ignore(self) -> None:
        """Have them do nothing any more, also while Python comes to its end: the process is leaving."""
        if threading.current_thread() is threading.main_thread():
            while self._before:
                signal.signal(self._before.popitem()[0], signal.SIG_IGN)

    def close(self) -> None:
        """Restore the handlers that were there before, where ours still stand."""
        if threading.current_thread() is not threading.main_thread():
            return
        while self._before:
            number, before = self._before.popitem()
            if signal.getsignal(number) == self._handle:
                _restore(number, before)

    def _handle(self, number: int, frame: Any) -> None:
        before = self._before.get(number, signal.SIG_DFL)
        if os.getpid() != self._owner:
            _as_before(number, before, frame, forced=number in _KILLS)
            return
        now = time.monotonic()
        first = self._first.setdefault(number, now)
        if number in _KILLS and now - first > self.again_after:
            _as_before(number, before, frame, forced=True)
            return
        if self.received is None:
            self.received = signal.Signals(number)
        _as_before(number, before, frame, forced=False)


def _as_before(number: int, before: Any, frame: Any, *, forced: bool) -> None:
    """Call the user's handler; with ``forced`` do what the system or Python does without one."""
    if callable(before) and before is not signal.default_int_handler:
        before(number, frame)
    elif forced:
        _restore(number, before)
        signal.raise_signal(number)


def _restore(number: int, before: Any) -> None:
    # None stands for a handler that was not set from Python, and cannot be set from there.
    signal.signal(number, signal.SIG_DFL if before is None else before)


__all__ = ["StopSignals"]
