"""When a run is to stop before it is done, as settings."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from os import PathLike

from accel_core.errors import Fault
from accel_core.spelling import guess

from . import checks
from .base import KwargsHandler

STOP_SIGNALS = ("SIGTERM", "SIGUSR1")
"""What schedulers send before they kill; a system that lacks one of them never sends it."""
_NEVER_SEEN = ("SIGKILL", "SIGSTOP")


@dataclass(frozen=True, slots=True)
class PreemptionKwargs(KwargsHandler):
    """What makes ``Accelerator.should_stop`` true, and when.

    ``deadline``: how long the run may take from the start of the Accelerator, in seconds or as a timedelta,
    or until when as a datetime, without a zone in local time. ``job_deadline``: also heed the end of the job
    that SLURM names (``SLURM_JOB_END_TIME``). ``margin``: seconds, or a timedelta, that are left before a
    deadline besides the time of a save. ``signals``: names of those to stop at. ``directory``: where
    ``exit_for_requeue`` leaves its marker; the project's folder when None.
    """

    deadline: timedelta | datetime | float | None = None
    margin: timedelta | float = 30.0
    signals: tuple[str, ...] = STOP_SIGNALS
    job_deadline: bool = True
    directory: str | PathLike[str] | None = None

    def faults(self) -> Iterator[Fault]:
        """Yield everything that is wrong."""
        if not isinstance(self.deadline, (datetime, type(None))):
            yield from self._span_faults("deadline", "or a datetime, or None", above=True)
        yield from self._span_faults("margin", "")
        yield from checks.flags(self, "job_deadline")
        yield from self._signal_faults()
        folder: object = self.directory
        if folder is not None and not isinstance(folder, (str, PathLike)):
            yield Fault("directory", folder, "must be a path or None")

    def _span_faults(self, name: str, others: str, *, above: bool = False) -> Iterator[Fault]:
        value = getattr(self, name)
        seconds = value.total_seconds() if isinstance(value, timedelta) else value
        fine = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        # Not a number is neither of the two; nor is anything later than the end of time.
        if not fine or not (0 < seconds < 1e12 or (seconds == 0 and not above)):
            bound = "more than 0" if above else "0 or more"
            yield Fault(name, value, f"must be a number of seconds or a timedelta, {bound} {others}".rstrip())

    def _signal_faults(self) -> Iterator[Fault]:
        names: object = self.signals
        if isinstance(names, str) or not isinstance(names, (tuple, list)):
            yield Fault("signals", names, "must be a tuple of names", "write ('SIGTERM',) for one")
            return
        known = [*dict.fromkeys([*STOP_SIGNALS, *signal.Signals.__members__])]
        for position, name in enumerate(names):
            field = f"signals[{position}]"
            if not isinstance(name, str) or str(name) not in known:
                yield Fault(field, name, "is the name of no signal", guess(str(name), known))
            elif name in _NEVER_SEEN:
                yield Fault(field, name, "ends a process before it can do anything", "leave it out")


__all__ = ["STOP_SIGNALS", "PreemptionKwargs"]
