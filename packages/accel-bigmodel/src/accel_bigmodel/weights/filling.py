"""Bytes of files into the memory of tensors: each byte once, in large reads, on several threads.

Into the host's memory a file is read directly; into another device, or another dtype, by way of a small
buffer for each thread. What a mapping costs for every page is not paid, and no page of a file is counted as
memory of this process.
"""

from __future__ import annotations

import ctypes
import io
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from accel_core.errors import CheckpointError
from accel_core.paths import open_to_read
from accel_core.trouble import explaining

from .mapped import Location

PIECE = 16 << 20
"""Bytes that a thread reads before it asks for more work: large enough that asking costs nothing."""
_MOST_TENSORS = 256
_SMALL = 4 << 20
_MOST_THREADS = 8
_HUGE_PAGES = 14  # MADV_HUGEPAGE of Linux, where mmap of older versions of Python does not name it


@dataclass(frozen=True, slots=True)
class Fill:
    """Bytes ``begin`` to ``end`` of ``file``, of ``dtype``, for elements of ``target`` from ``start`` on."""

    file: Path
    begin: int
    end: int
    dtype: torch.dtype
    target: torch.Tensor
    start: int


def fill(wanted: Iterable[tuple[torch.Tensor, Location]]) -> None:
    """Fill each tensor, which must be contiguous, with what lies at its location, converted if need be.

    Raises CheckpointError when a file cannot be read, or has fewer bytes than it had.
    """
    wanted = list(wanted)
    _long_enough(place for _, place in wanted)
    jobs = list(_jobs(wanted))
    total = sum(each.end - each.begin for job in jobs for each in job)
    threads = 1 if total <= _SMALL else max(1, min(_MOST_THREADS, len(jobs), max(2, _processors())))
    waiting = _Waiting(jobs)
    if threads == 1:
        _work(waiting)
        return
    with ThreadPoolExecutor(threads, "accel-fill") as pool:
        done = [pool.submit(_work, waiting) for _ in range(threads)]
        try:
            for each in done:
                each.result()
        finally:
            # An error, or Ctrl-C: the others end with the piece that they are at.
            waiting.stop()


def _long_enough(places: Iterable[Location]) -> None:
    """Raise CheckpointError for a file that became shorter; before anything is written."""
    ends: dict[Path, int] = {}
    for place in places:
        ends[place.file] = max(place.end, ends.get(place.file, 0))
    for path, end in ends.items():
        with explaining("read a file of weights", path):
            size = path.stat().st_size
        if size < end:
            raise _short(path, end - size)


def _short(path: Path, count: int) -> CheckpointError:
    return CheckpointError(
        f"The file ends {count:,} bytes before a tensor that its header promises",
        where=str(path),
        fix="do not change files of weights while they are read",
    )


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return os.cpu_count() or 1 if affinity is None else len(affinity(0))


def _jobs(wanted: Iterable[tuple[torch.Tensor, Location]]) -> Iterator[list[Fill]]:
    """Yield pieces of work in the order of the files: parts of a large tensor, or several small ones."""
    job: list[Fill] = []
    size = 0
    for target, place in sorted(wanted, key=lambda each: (str(each[1].file), each[1].begin)):
        assert target.is_contiguous()
        width = place.dtype.itemsize
        for begin in range(place.begin, place.end, PIECE):
            end = min(begin + PIECE, place.end)
            if job and (size + end - begin > PIECE or len(job) == _MOST_TENSORS):
                yield job
                job, size = [], 0
            job.append(Fill(place.file, begin, end, place.dtype, target, (begin - place.begin) // width))
            size += end - begin
    if job:
        yield job


class _Waiting:
    """Work that threads take from."""

    def __init__(self, jobs: list[list[Fill]]) -> None:
        self._jobs = iter(jobs)
        self._lock = threading.Lock()

    def next(self) -> list[Fill] | None:
        with self._lock:
            return next(self._jobs, None)

    def stop(self) -> None:
        with self._lock:
            self._jobs = iter(())


def _work(waiting: _Waiting) -> None:
    reader = _Reader()
    try:
        with torch.no_grad():
            while (job := waiting.next()) is not None:
                for each in job:
                    reader.fill(each)
    except BaseException:
        waiting.stop()
        raise
    finally:
        reader.close()


class _Reader:
    """The open files and the buffers of one thread."""

    def __init__(self) -> None:
        self._files: dict[Path, io.FileIO] = {}
        self._staging: dict[bool, torch.Tensor] = {}

    def fill(self, part: Fill) -> None:
        host = part.target.device.type == "cpu"
        with explaining("read a file of weights", part.file):
            if host and part.target.dtype == part.dtype:
                offset = part.start * part.dtype.itemsize
                self._read(part, _memory(part.target.data_ptr() + offset, part.end - part.begin))
                return
            buffer = self._buffer(pinned=not host)[: part.end - part.begin]
            self._read(part, _memory(buffer.data_ptr(), buffer.numel()))
        values = buffer.view(part.dtype)
        # Waits until the values are there: the buffer is used again.
        part.target.view(-1)[part.start : part.start + values.numel()].copy_(values)

    def _read(self, part: Fill, into: memoryview) -> None:
        file = self._files.get(part.file)
        if file is None:
            file = self._files[part.file] = io.FileIO(open_to_read(part.file), "rb")
        file.seek(part.begin)
        while into:
            count = file.readinto(into)
            if not count:
                raise _short(part.file, len(into))
            into = into[count:]

    def _buffer(self, *, pinned: bool) -> torch.Tensor:
        if pinned not in self._staging:
            self._staging[pinned] = _staging(pinned=pinned)
        return self._staging[pinned]

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def _staging(*, pinned: bool) -> torch.Tensor:
    if pinned:
        try:
            return torch.empty(PIECE, dtype=torch.uint8, pin_memory=True)
        except (RuntimeError, NotImplementedError):
            pass  # a device that copies from any memory as fast as it can
    return torch.empty(PIECE, dtype=torch.uint8)


def _memory(address: int, count: int) -> memoryview:
    return memoryview((ctypes.c_ubyte * count).from_address(address)).cast("B")


def fresh(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return uninitialised memory for a tensor; what is large on the host gets large pages where it can.

    To hand over four kilobytes at a time takes the system longer than to read them.
    """
    made = torch.empty(shape, dtype=dtype, device=device)
    size = made.numel() * made.element_size()
    advise = _advise()
    if advise is not None and made.device.type == "cpu" and size >= _SMALL:
        first = -(-made.data_ptr() // 4096) * 4096
        advise(first, (made.data_ptr() + size - first) // 4096 * 4096)
    return made


@cache
def _advise() -> Callable[[int, int], Any] | None:
    if sys.platform != "linux":
        return None
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None:
        return None
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    # What it answers does not matter: without it, the same happens in smaller steps.
    return lambda address, size: madvise(address, size, _HUGE_PAGES)


__all__ = ["PIECE", "fill", "fresh"]
