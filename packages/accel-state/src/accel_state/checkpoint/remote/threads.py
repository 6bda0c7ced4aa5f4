"""The same thing done to many, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

_I = TypeVar("_I")
_O = TypeVar("_O")


def in_threads(action: Callable[[_I], _O], items: Iterable[_I], threads: int) -> list[_O]:
    """Return what ``action`` gives for each item, in order; on an error begin no more, wait, and raise it."""
    waiting = list(items)
    if len(waiting) <= 1:
        return [action(item) for item in waiting]
    pool = ThreadPoolExecutor(min(threads, len(waiting)), "accel-remote")
    tasks: list[Future[_O]] = []
    try:
        try:
            tasks.extend(pool.submit(action, item) for item in waiting)
        except RuntimeError:
            # The interpreter ends, and starts no threads any more; a save in the background goes on.
            done = [task.result() for task in tasks]
            return done + [action(item) for item in waiting[len(tasks) :]]
        wait(tasks, return_when=FIRST_EXCEPTION)
        # Who cleans up after an error must not be overtaken by a request that was under way.
        pool.shutdown(cancel_futures=True)
        for task in tasks:
            if not task.cancelled():
                task.result()
        return [task.result() for task in tasks]
    finally:
        # After an interrupt there is no waiting: a request may take its whole patience.
        pool.shutdown(wait=False, cancel_futures=True)


__all__ = ["in_threads"]
