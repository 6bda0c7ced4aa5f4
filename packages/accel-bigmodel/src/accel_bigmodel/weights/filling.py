"""Bytes of files into the memory of tensors: each byte once, in large reads, on several threads.

Into the host's memory a file is read directly; into another device, or another dtype, by way of a small
buffer for each thread. What a mapping costs for every page is not paid, and no page of a file is counted as
memory of this process.
"""

from __future__ import annotations

import ctypes
import io
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from accel_core.errors import CheckpointError
from accel_core.paths import open_to_read
from accel_core.trouble import explaining

from .mapped import Location
from .pages import Pages, ask_for_large

PIECE = 16 << 20
"""Bytes that a thread reads before it asks for more work: large enough that asking costs nothing."""
_MOST_TENSORS = 256
_SMALL = 4 << 20
_MOST_THREADS = 8


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
    for device in {target.device for target, _ in wanted if target.device.type not in {"cpu", "meta"}}:
        # Threads copy on their own streams; what was in this memory before may still be in use on this one.
        torch.get_device_module(device).synchronize(device)
    jobs = list(_jobs(wanted))
    total = sum(each.end - each.begin for job in jobs for each in job)
    threads = 1 if total <= _SMALL else max(1, min(_MOST_THREADS, len(jobs), max(2, _processors())))
    waiting = _Waiting(jobs)
    pages = Pages()
    if threads == 1:
        _work(waiting, pages)
        return
    with ThreadPoolExecutor(threads, "accel-fill") as pool:
        done = [pool.submit(_work, waiting, pages) for _ in range(threads)]
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


def _work(waiting: _Waiting, pages: Pages) -> None:
    reader = _Reader(pages)
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

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._files: dict[Path, io.FileIO] = {}
        self._staging: dict[bool, torch.Tensor] = {}

    def fill(self, part: Fill) -> None:
        host = part.target.device.type == "cpu"
        with explaining("read a file of weights", part.file):
            if host and part.target.dtype == part.dtype:
                self._into_place(part)
                return
            buffer = self._buffer(pinned=not host)[: part.end - part.begin]
            self._read(part, _memory(buffer.data_ptr(), buffer.numel()))
        values = buffer.view(part.dtype)
        # Waits until the values are there: the buffer is used again.
        part.target.view(-1)[part.start : part.start + values.numel()].copy_(values)

    def _into_place(self, part: Fill) -> None:
        address = part.target.data_ptr() + part.start * part.dtype.itemsize
        count = part.end - part.begin
        into = _memory(address, count)
        if count < _SMALL:
            self._read(part, into)
            return
        large = self._pages.choose()
        if large:
            ask_for_large(address, count)
        begin = time.perf_counter()
        self._read(part, into)
        self._pages.note(large, count, time.perf_counter() - begin)

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
            return torch.empty(PIECE, dtype=torch.uint8, device="cpu", pin_memory=True)
        except (RuntimeError, NotImplementedError):
            pass  # a device that copies from any memory as fast as it can
    return torch.empty(PIECE, dtype=torch.uint8, device="cpu")


def _memory(address: int, count: int) -> memoryview:
    return memoryview((ctypes.c_ubyte * count).from_address(address)).cast("B")


__all__ = ["PIECE", "fill"]
