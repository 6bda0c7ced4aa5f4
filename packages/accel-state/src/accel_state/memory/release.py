"""Give memory back: Python's objects, the caches of torch, the heap of the C library."""

from __future__ import annotations

import ctypes
import gc
import traceback
from typing import Any

from accel_state import process


def clear_device_cache(garbage_collection: bool = False) -> None:
    """Give memory that is cached and unused back: of this process's device, and of its heap.

    ``garbage_collection``: first collect objects that only hold each other, and with them their tensors.
    """
    if garbage_collection:
        gc.collect()
    process.chosen_hardware().memory.empty_cache()
    _trim_heap()


def release_memory(*objects: Any) -> list[Any]:
    """Return one None per object, to be assigned over the names; collect and clear caches.

    An object goes once its last name is gone, so assign the result over every name that holds it. As
    those names hold until the assignment, memory that they alone hold returns to torch then, and to the
    system with the next call.

    >>> model, optimizer = release_memory(model, optimizer)
    """
    released: list[Any] = [None] * len(objects)
    del objects
    clear_device_cache(garbage_collection=True)
    return released


def forget_error(error: BaseException, outer: BaseException | None = None) -> None:
    """Clear the frames that ``error`` and what led to it went through, so that their locals can be freed.

    ``outer``: the exception that was being handled before, which is not ours to change.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = {id(outer)}
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        traceback.clear_frames(each.__traceback__)
        each.__traceback__ = None
        waiting += [each.__cause__, each.__context__]


def _trim_heap() -> None:
    """Have the C library give free pages back, where it can: glibc keeps what small tensors were made of."""
    try:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # Windows has no library without a name
        return
    if trim is not None:
        trim(0)


__all__ = ["clear_device_cache", "forget_error", "release_memory"]
