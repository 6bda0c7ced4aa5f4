"""Let the threads of torch's communication come to rest before their group goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_TASKS = Path("/proc/self/task")
_NAMES = ("pt_gloo", "gloo_")
_LEAST = 0.02
_MOST = 2.0
_LOOK = 0.005


def let_threads_rest() -> None:
    """Return when gloo's threads wait for work, after 20 ms at least and 2 s at most.

    They may be about to let go of the last exchange's tensors, for which they need the interpreter's lock.
    What ends a group may hold that lock and wait for them: neither would ever go on. Here the lock is free
    for them; where the system tells which threads still have to be given a core, that is waited for.
    """
    end = time.monotonic() + _MOST
    time.sleep(_LEAST)
    while _busy() and time.monotonic() < end:
        time.sleep(_LOOK)


def _busy() -> bool:
    return any(state != "S" for state in _states())


def _states() -> Iterator[str]:
    """Yield the state letter of each such thread (man 5 proc_pid_stat); none where there is no /proc."""
    with suppress(OSError):
        for task in _TASKS.iterdir():
            # A thread may have ended meanwhile.
            with suppress(OSError, IndexError):
                name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
                if name.startswith(_NAMES):
                    yield rest.split()[0]


__all__ = ["let_threads_rest"]
