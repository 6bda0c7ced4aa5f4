"""What takes long on all ranks, without anybody waiting long for a message."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from accel_core.protocols import Collectives

from ..agreement import together

_T = TypeVar("_T")

BEAT = 5.0
"""Seconds after which a rank says that it is still busy."""


def together_slowly(group: Collectives, action: Callable[[], _T], doing: str) -> list[_T]:
    """Do as `together` what may take longer than a group waits for a message. Collective.

    A rank may send for an hour while another has nothing to send. Its ``action`` runs in a thread, and the
    ranks exchange every few seconds who is through.
    """
    if group.world_size == 1:
        return together(group, action, doing)
    pool = ThreadPoolExecutor(1, "accel-remote")
    try:
        task = _begun(pool, action)
        while not all(group.all_gather_object(bool(wait([task], BEAT).done))):
            pass
        return together(group, task.result, doing)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begun(pool: ThreadPoolExecutor, action: Callable[[], _T]) -> Future[_T]:
    try:
        return pool.submit(action)
    except RuntimeError:
        # The interpreter ends, and starts no threads any more: it is done at once.
        task: Future[_T] = Future()
        try:
            task.set_result(action())
        except Exception as error:  # noqa: BLE001 - raised where the result is asked for
            task.set_exception(error)
        return task


__all__ = ["BEAT", "together_slowly"]
