"""What a rank says when an exchange failed, and hears from the others: nothing before that happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from .calls import table

_LISTEN = 2.0
"""Seconds to wait for the words of the others, who notice the same failure a little later."""
_SILENT = "no word: it waits for nothing here, so it is busy elsewhere, stopped, or gone"


def last_words(members: Sequence[int], rank: int, words: str) -> str:
    """Tell ``members`` where we stopped; return a table of where they did, or nothing without a store."""
    store = default_store()
    if store is None:
        return ""
    heard = {rank: words}
    # In a thread: the store may live in the very process that has stopped, and never answer.
    talk = threading.Thread(
        target=_exchange,
        args=(store, tuple(members), rank, words, heard),
        name="accel-last-words",
        daemon=True,
    )
    try:
        talk.start()
    except RuntimeError:
        return ""  # the interpreter ends, and starts no threads any more
    talk.join(2 * _LISTEN)
    rows = [heard.get(number, _SILENT) for number in range(len(members))]
    return f"\nWhere the ranks stopped:\n{table(rows)}\n"


def _exchange(store: Any, members: tuple[int, ...], rank: int, words: str, heard: dict[int, str]) -> None:
    place = f"accel/stopped/{'-'.join(map(str, members))}"
    try:
        store.set(f"{place}/{rank}", words)
        deadline = time.monotonic() + _LISTEN
        while len(heard) < len(members) and time.monotonic() < deadline:
            for other in range(len(members)):
                if other not in heard and store.check([f"{place}/{other}"]):
                    heard[other] = store.get(f"{place}/{other}").decode()
            time.sleep(_LISTEN / 40)
    except (RuntimeError, ValueError):
        return  # the store is gone: what was heard so far must do


def default_store() -> Any:
    """Return the store of the default process group, or None; torch has no public name for it."""
    get = getattr(dist.distributed_c10d, "_get_default_store", None)
    try:
        return get() if get is not None else None
    except (RuntimeError, ValueError):
        return None


__all__ = ["default_store", "last_words"]
