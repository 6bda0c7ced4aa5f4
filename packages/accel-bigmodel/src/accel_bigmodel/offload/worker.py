"""A thread that does one thing after the other, while there is something to do."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

_IDLE = 5.0
"""Seconds without anything to do after which the thread ends."""


class Worker:
    """Run jobs in order, on a thread of their own that comes and goes. Jobs must not raise."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(self, job: Callable[[], None]) -> None:
        """Run ``job`` after those that were submitted before."""
        with self._lock:
            self._jobs.put(job)
            # Not alive: it ended for want of work, or stayed behind in the process that forked this one.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the thread once it has done what was submitted, and wait a little for that."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and thread.is_alive():
            self._jobs.put(None)
            if thread is not threading.current_thread():
                thread.join(1.0)

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE)
            except queue.Empty:
                with self._lock:
                    if self._jobs.empty():
                        self._thread = None
                        return
                continue
            if job is None:
                return
            job()
            # Not held while it waits for the next: jobs hold tensors.
            del job


__all__ = ["Worker"]
