"""How to tell that memory is used up from everything else that can go wrong."""

from __future__ import annotations

import errno

import torch

from accel_core.errors import AccelError

_TEXTS = (
    "out of memory",  # accelerators, whichever class of error their driver raises
    "can't allocate memory",  # torch's CPU allocator
    "not enough memory",  # the same on Windows
    "cannot allocate memory",  # the system's own words, from mmap and shared memory
    "alloc_failed",  # cuBLAS, cuDNN
    "resource_exhausted",  # XLA
)
"""What a RuntimeError says when it means memory, in lower case."""


def should_reduce_batch_size(exception: BaseException) -> bool:
    """Tell whether ``exception`` means that a device or the machine has no memory left.

    That is torch.OutOfMemoryError, MemoryError, ENOMEM, a RuntimeError with the words of an allocator
    (of the CPU, of an accelerator, of cuBLAS, cuDNN or XLA), and what was raised ``from`` one of these.
    """
    error: BaseException | None = exception
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if _says_memory(error):
            return True
        seen.add(id(error))
        error = error.__cause__
    return False


def _says_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # Our own errors may speak of memory without being out of it.
    if not isinstance(error, RuntimeError) or isinstance(error, AccelError):
        return False
    text = str(error).lower()
    return any(sign in text for sign in _TEXTS)


__all__ = ["should_reduce_batch_size"]
