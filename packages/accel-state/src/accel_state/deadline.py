"""When a run must be over, and how long before that the last save has to begin."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from math import inf
from statistics import median

from accel_core.config import PreemptionKwargs
from accel_core.errors import ConfigError, Fault

JOB_END = "SLURM_JOB_END_TIME"
"""Seconds since 1970 at which SLURM ends the job (https://slurm.schedmd.com/sbatch.html)."""
SAFETY = 1.5
"""A save may take that many times as long as the longest so far."""
_AHEAD = 2
"""Looks that pass before what was seen is known everywhere: the one that tells, and the one that hears."""


class Deadline:
    """The earliest of the deadlines that are known, on a clock that nobody sets.

    Raises ConfigError when the environment names a time that is none.
    """

    def __init__(self, settings: PreemptionKwargs, environ: Mapping[str, str] | None = None) -> None:
        self.at = inf
        """When, by ``time.monotonic``."""
        self.text = ""
        self.longest_save = 0.0
        self._margin = _seconds(settings.margin)
        self._looks: deque[float] = deque(maxlen=6)
        env = os.environ if environ is None else environ
        if settings.deadline is not None:
            self._set(settings.deadline, "PreemptionKwargs")
        if settings.job_deadline and env.get(JOB_END):
            self._set(_job_end(env[JOB_END]), JOB_END)

    def _set(self, given: datetime | timedelta | float, source: str) -> None:
        now = time.time()
        left = given.timestamp() - now if isinstance(given, datetime) else _seconds(given)
        at = time.monotonic() + left
        if at < self.at:
            when = datetime.fromtimestamp(now + left).astimezone().isoformat(timespec="seconds")
            self.at, self.text = at, f"deadline {when} ({source})"

    @property
    def needed(self) -> float:
        """Return the seconds to keep for the last save, for leaving, and for the ranks to agree.

        The steps in between count with the middle of their latest times: one that held an evaluation
        says nothing of the next.
        """
        looks = list(self._looks)
        step = median(b - a for a, b in pairwise(looks)) if len(looks) > 1 else 0.0
        return self.longest_save * SAFETY + self._margin + _AHEAD * step

    def near(self) -> bool:
        """Look at the clock: tell whether it is time to save and leave."""
        now = time.monotonic()
        self._looks.append(now)
        return now + self.needed >= self.at


def _seconds(span: timedelta | float) -> float:
    return span.total_seconds() if isinstance(span, timedelta) else float(span)


def _job_end(text: str) -> datetime:
    try:
        return datetime.fromtimestamp(int(text)).astimezone()
    except (ValueError, OverflowError, OSError) as error:
        fault = Fault(
            JOB_END,
            text,
            "must be the end of the job in seconds since 1970",
            "unset it, or pass PreemptionKwargs(job_deadline=False)",
        )
        raise ConfigError("environment", [fault]) from error


__all__ = ["JOB_END", "Deadline"]
