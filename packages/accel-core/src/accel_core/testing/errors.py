"""What the pool raises when a rank fails, dies or hangs.

::

    AccelError
    ├── WorkerError          one call failed; carries every rank's failure
    ├── RemoteError          stands for an exception that cannot be pickled
    ├── WorkerDiedError      a rank's process ended (killed, crashed, exited)
    └── RankStoppedError     a rank was still running and the pool stopped it
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass

from accel_core.errors import AccelError


@dataclass(frozen=True, slots=True)
class RankFailure:
    """How one rank failed: the exception object, its traceback (or stack) as text, and what it printed."""

    exception: BaseException
    text: str
    output: str = ""


class RemoteError(AccelError):
    """Stand for an exception that could not be sent to the parent; the text is its traceback."""


class WorkerDiedError(AccelError):
    """Report a worker process that ended during a call; ``status`` is negative for a signal."""

    def __init__(self, rank: int, status: int | None) -> None:
        self.rank = rank
        self.status = status
        super().__init__(
            f"The process of rank {rank} {_ended(status)}", fix="read what it printed before it ended"
        )


class RankStoppedError(AccelError):
    """Report a rank that was still running when the call had to end; ``stack`` shows where it was."""

    def __init__(self, rank: int, why: str, stack: str) -> None:
        self.rank = rank
        self.stack = stack
        super().__init__(
            f"Rank {rank} was still running {why} and was stopped", fix="its stack shows what it waited for"
        )


class WorkerError(AccelError):
    """Report that a call failed on some ranks; ``failures`` maps each of them to its `RankFailure`.

    ``__cause__`` is the exception of the lowest rank that failed by itself: ``pytest.raises(WorkerError,
    match=...)`` sees every rank's text, and ``error.value.__cause__`` is the original.
    """

    def __init__(self, what: str, failures: Mapping[int, RankFailure], *, timed_out: bool = False) -> None:
        self.failures = dict(failures)
        self.timed_out = timed_out
        super().__init__(what)
        first = self.first
        if first is not None:
            self.__cause__ = self.failures[first].exception

    @property
    def first(self) -> int | None:
        """Return the lowest rank that failed by itself, else the lowest that was stopped."""
        failures = self.failures.items()
        own = [rank for rank, failure in failures if not isinstance(failure.exception, RankStoppedError)]
        return min(own or self.failures, default=None)

    def __str__(self) -> str:
        parts = [super().__str__()]
        for rank, failure in sorted(self.failures.items()):
            parts.append(f"--- rank {rank} ---\n{failure.text.rstrip()}")
            if failure.output.strip():
                parts.append(f"--- rank {rank} printed ---\n{failure.output.rstrip()}")
        return "\n".join(parts)


def _ended(status: int | None) -> str:
    if status is None:
        return "ended and nobody knows how"
    if status >= 0:
        return f"ended with exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "an unknown signal"
    return f"was ended by signal {-status} ({name})"


__all__ = ["RankFailure", "RankStoppedError", "RemoteError", "WorkerDiedError", "WorkerError"]
