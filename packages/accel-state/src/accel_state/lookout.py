"""A thread of debug mode that tells the other ranks on which line this process is, when one of them waits."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from .frames import user_line

LOOK = 0.5
"""Seconds between two looks at whether somebody asks."""
_ANSWER = 4 * LOOK


class Lookout:
    """Answer for this process through ``store``, and ask the others. Ranks are those of the whole world.

    The thread looks and sleeps in Python and is never inside a long call of torch, so that the
    interpreter can end at any time.
    """

    def __init__(self, store: Any, rank: int) -> None:
        self._store = store
        self._rank = rank
        self._main = threading.get_ident()
        self._stop = threading.Event()
        self._store_leaves = False
        """Rank 0 has left, and the store that it often holds with it; torch is loud about a lost one."""
        # Asked from the main thread, answered by the other: one connection must not wait for itself.
        self._own = store.clone() if hasattr(store, "clone") else store
        self._thread = threading.Thread(target=self._watch, name="accel-lookout", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        answered = 0
        while not self._stop.wait(LOOK):
            try:
                asked = self._own.add("lookout/asked", 0)
                if asked > answered:
                    if self._own.check(["lookout/ended/0"]):
                        self._store_leaves = True
                        return
                    frame = sys._current_frames().get(self._main)
                    self._own.set(f"lookout/{self._rank}", f"{asked} {user_line(frame)}")
                    answered = asked
            except (RuntimeError, ValueError):
                return  # the store is gone, and with it everybody who could ask

    def ask(self, ranks: Iterable[int]) -> dict[int, str]:
        """Return the line on which each of ``ranks`` is now, of those that answer in time."""
        number = self._store.add("lookout/asked", 1)
        open_ranks, found = set(ranks), {}
        deadline = time.monotonic() + _ANSWER
        while open_ranks and time.monotonic() < deadline:
            for rank in sorted(open_ranks):
                key = f"lookout/{rank}"
                if not self._store.check([key]):
                    continue
                seen, _, line = self._store.get(key).decode().partition(" ")
                if int(seen) >= number:
                    found[rank] = line
                    open_ranks.discard(rank)
            time.sleep(LOOK / 5)
        return found

    def ended(self, ranks: Iterable[int]) -> set[int]:
        """Return which of ``ranks`` have left."""
        if not self._store.add("lookout/ended", 0):
            return set()
        return {rank for rank in ranks if self._store.check([f"lookout/ended/{rank}"])}

    def close(self, *, for_good: bool = False) -> None:
        """Stop answering, and say that this process has left; ``for_good``: it ends now."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        if self._store_leaves:
            return
        try:
            self._own.set(f"lookout/ended/{self._rank}", "1")
            self._own.add("lookout/ended", 1)
            if self._rank == 0 and for_good:
                # The others look once more, and then leave the store alone.
                self._own.add("lookout/asked", 1)
                time.sleep(1.5 * LOOK)
        except (RuntimeError, ValueError):
            pass  # nobody left to be told


__all__ = ["LOOK", "Lookout"]
