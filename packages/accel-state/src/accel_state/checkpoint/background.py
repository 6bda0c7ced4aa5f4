"""Writing and committing checkpoints in a thread, while the program goes on."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - what it registers for the end must be there before ours
import logging
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accel_core.protocols import CheckpointIO, Collectives, LonelyCollectives
from accel_core.settling import let_threads_rest

from .. import process  # noqa: F401 - its function for the end must be there before ours, to run after it
from .flight import Flight
from .memory import HostMemory
from .snapshot import SnapshotSink

_logger = logging.getLogger(__name__)


class BackgroundSaver:
    """Save one checkpoint at a time in the background: ``snapshot``, write state into it, ``submit``.

    ``stores`` makes the store for a group of ranks, such as the class `CheckpointStore`. ``group``: the
    ranks that save together. The thread talks to the other ranks in a group of its own, made by the first
    ``submit``, so that its messages meet none of the program's.

    ``snapshot``, ``submit`` and ``wait`` are collective, ``check`` is local. The process does not end before
    the checkpoint is committed or has failed. For the thread that trains only.
    """

    def __init__(
        self, stores: Callable[[Collectives], CheckpointIO], group: Collectives | None = None
    ) -> None:
        self.group: Collectives = group if group is not None else LonelyCollectives()
        self._stores = stores
        self._memory = HostMemory()
        self._snapshot: SnapshotSink | None = None
        self._flight: Flight | None = None
        self._opened: tuple[Any, CheckpointIO] | None = None
        _savers.add(self)

    @property
    def busy(self) -> bool:
        """Whether a save is on its way."""
        return self._flight is not None and not self._flight.ended

    def snapshot(self, near: str | Path | None = None) -> SnapshotSink:
        """Return an empty snapshot in the memory of the one before, after waiting for that to be written.

        ``near``: where the checkpoint will be, if on a file system of this machine. Raises as ``wait``.
        """
        self.wait()
        if self._snapshot is not None:
            # Where taking it has failed, nobody has submitted it.
            self._snapshot.release()
        self._snapshot = SnapshotSink(self._memory, near=near)
        return self._snapshot

    def submit(
        self,
        path: str | Path,
        snapshot: SnapshotSink,
        *,
        step: int | None = None,
        after: Callable[[], object] | None = None,
    ) -> None:
        """Begin to save ``snapshot`` as the checkpoint ``path`` and return. Collective.

        ``after`` is called in the thread, on every rank, when the checkpoint is committed. One save is in
        flight: this waits for the one before, and raises as ``wait`` does if that has failed.
        """
        self.wait()
        snapshot.seal()
        channel, store = self._open()
        flight = self._flight = Flight(store, channel, str(path), snapshot, step, after)
        _unasked.add(flight)
        flight.start()

    def check(self) -> None:
        """Raise the error of a save that has failed, once. Never waits for the save.

        When all ranks call it equally often, they raise at the same call.
        """
        flight = self._flight
        if flight is not None:
            self._pass(flight)

    def wait(self) -> None:
        """Return when the save in flight is committed; raise CheckpointError if it failed.

        An interrupt ends the waiting, not the save.
        """
        flight = self._flight
        if flight is None:
            return
        flight.join()
        self._drop(flight)
        if flight.error is not None:
            raise flight.failure()

    def free(self) -> None:
        """Give the memory of the copies back to the system, after waiting. Raises as ``wait``."""
        self.wait()
        self._memory.clear()

    # -- inside ----------------------------------------------------------------------------------

    def _pass(self, flight: Flight) -> None:
        if flight.due():
            self._drop(flight)
            raise flight.failure()
        if flight.ended and flight.error is None:
            self._drop(flight)

    def _drop(self, flight: Flight) -> None:
        self._flight = None
        _unasked.discard(flight)

    def _open(self) -> tuple[Any, CheckpointIO]:
        """Return the thread's group, and the store on it. Collective where there is none yet."""
        if self._opened is None or getattr(self._opened[0], "process_group", True) is None:
            beside = getattr(self.group, "beside", None)
            everybody = range(self.group.world_size)
            channel = self.group.group(everybody) if beside is None else beside(self._leaving)
            self._opened = channel, self._stores(channel)
        return self._opened

    def _leaving(self) -> None:
        """Wait before the group is left; what failed is kept for the next call."""
        # At the program's end the interpreter has waited, or the user has interrupted that.
        if self._flight is not None and not _ending:
            self._flight.join()

    def _forget(self) -> None:
        """In a forked child there is no thread, and the save is the parent's."""
        self._flight = self._opened = self._snapshot = None
        self._memory = HostMemory()


_savers: weakref.WeakSet[BackgroundSaver] = weakref.WeakSet()
_unasked: set[Flight] = set()
"""Saves whose outcome nobody has asked for yet; their savers may be gone."""

_ending = False
"""Whether the program ends, and the waiting for saves is over."""


def _forget_all() -> None:
    _unasked.clear()
    for saver in list(_savers):
        saver._forget()


def _at_exit() -> None:
    """Say what nobody has asked for."""
    global _ending
    _ending = True
    for flight in _unasked:
        if not flight.ended:
            _logger.error("Interrupted: the checkpoint %s may not have been saved", flight.path)
        elif flight.error is not None:
            _logger.error("%s", flight.failure())
    if _unasked:
        # Without an interpreter they end the process. The group itself may be left to the system.
        let_threads_rest()


def _before_exit() -> None:
    """Wait for what is in flight while threads can still be started: drivers of remote stores start some."""
    for flight in list(_unasked):
        flight.join()


# What is registered later is called earlier: before concurrent.futures takes no more work. Python has no
# public name for it; without it the threads are joined all the same.
_register = getattr(threading, "_register_atexit", None)
if _register is not None:
    _register(_before_exit)
# Threads are joined before this, process groups are left after it.
atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)

__all__ = ["BackgroundSaver"]
