"""Requests are repeated while they fail for a reason that passes, and not for ever."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from accel_core.errors import CheckpointError, NotInstalledError

from ..address import shown
from .trouble import DamagedError, garbled, passes, unreachable

if TYPE_CHECKING:
    from tenacity import RetryCallState

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

PATIENCE = 300.0
"""Seconds from the first failure of a request to its last try."""
_LEAST_TRIES = 3
"""However long one try takes."""
_FIRST_WAIT = 0.2
_LONGEST_WAIT = 20.0


def persistently(action: Callable[[], _T], doing: str, uri: str, patience: float) -> _T:
    """Return what ``action`` returns; raise CheckpointError when it fails for good or for too long.

    DamagedError when the store's own checksum says that an object is not what was stored.

    Waits grow and are random, so that many ranks do not ask again at one moment. FileNotFoundError is
    raised as it is: to the caller it may be an answer.
    """
    try:
        import tenacity
    except ImportError:
        raise NotInstalledError("part", "remote checkpoints", "accel-state[remote]") from None
    first: list[float] = []

    def enough(state: RetryCallState) -> bool:
        if not first:
            first.append(time.monotonic())
        waited = time.monotonic() - first[0] + state.upcoming_sleep
        # On the way bytes change seldom; in the store they stay changed.
        vain = waited > patience or (state.outcome is not None and garbled(state.outcome.exception()))
        return state.attempt_number >= _LEAST_TRIES and vain

    def say(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        _logger.warning(
            "Could not %s (%s): %s: %s; trying again in %.1f s",
            doing,
            shown(uri),
            type(error).__name__,
            # As text: whoever keeps the record must not keep all that the error's frames refer to.
            str(error),
            state.upcoming_sleep,
        )

    tries = tenacity.Retrying(
        retry=tenacity.retry_if_exception(passes),
        wait=tenacity.wait_random_exponential(multiplier=_FIRST_WAIT, max=min(_LONGEST_WAIT, patience)),
        stop=enough,
        before_sleep=say,
        reraise=True,
    )
    try:
        return tries(action)
    except (FileNotFoundError, CheckpointError):
        raise
    except Exception as error:
        report = unreachable(error, doing, uri, int(tries.statistics.get("attempt_number", 1)))
        if garbled(error):
            report = DamagedError(report.what, where=report.where, fix="use the checkpoint before it")
        raise report from error


__all__ = ["PATIENCE", "persistently"]
