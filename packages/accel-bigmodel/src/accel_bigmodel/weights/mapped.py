"""One file of safetensors as tensors that are its pages: nothing is read before it is used."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from accel_core.errors import CheckpointError
from accel_core.paths import open_to_read
from accel_core.trouble import explaining
from accel_core.weights.header import Place, read_whole_header

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What the format calls the dtypes of torch. ``F8_E8M0`` is there if torch has it."""
if hasattr(torch, "float8_e8m0fnu"):
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu

# Private pages that are never written need no promise of memory; without it, a file that is larger than
# the memory of the machine could not be mapped. Python names the flag from 3.13 on; the value is Linux's.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a tensor lies: bytes ``begin`` to ``end`` of ``file``, contiguous, little-endian."""

    file: Path
    begin: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class MappedFile(Mapping[str, torch.Tensor]):
    """The tensors of one file of safetensors by name; asked for twice, a tensor is the same memory.

    Each has a storage to itself, so that copying or saving one does not take the file along. Writing to
    one changes this process's memory, never the file. Names that share bytes are in ``tied``: the
    further name, and the one that the bytes are stored under.

    Raises CheckpointError for a header that cannot be true, or a file that shrank since it was read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places, texts = read_whole_header(path, str(path))
        # Files that accel and the safetensors library write for tied tensors say so in texts.
        self.tied = {
            name: first for name, first in texts.items() if name not in self._places and first in self._places
        }
        self._located: dict[str, Location] = {}
        for name, place in self._places.items():
            if place.code not in DTYPES:
                raise CheckpointError(
                    f"{name!r} is stored as {place.code}, which this version of torch has no dtype for",
                    where=str(path),
                    fix="install a newer version of torch",
                )

    def __getstate__(self) -> dict[str, Any]:
        # A copy maps the file again.
        return {key: value for key, value in self.__dict__.items() if key != "_map"}

    def _place(self, name: str) -> Place:
        return self._places[self.tied.get(name, name)]

    def location(self, name: str) -> Location:
        """Return where the tensor lies in the file."""
        found = self._located.get(name)
        if found is None:
            place = self._place(name)
            found = Location(self.path, place.begin, place.end, DTYPES[place.code], place.shape)
            self._located[name] = found
        return found

    def __getitem__(self, name: str) -> torch.Tensor:
        place = self._place(name)
        dtype = DTYPES[place.code]
        if place.begin == place.end:
            return torch.empty(place.shape, dtype=dtype, device="cpu")
        if place.begin % dtype.itemsize:
            # The format allows it, and kernels do not.
            part = torch.frombuffer(
                self._map, dtype=torch.uint8, count=place.end - place.begin, offset=place.begin
            )
            return part.clone().view(dtype).view(place.shape)
        count = (place.end - place.begin) // dtype.itemsize
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=place.begin).view(place.shape)

    def __iter__(self) -> Iterator[str]:
        yield from self._places
        yield from self.tied

    def __len__(self) -> int:
        return len(self._places) + len(self.tied)

    def __contains__(self, name: object) -> bool:
        return name in self._places or name in self.tied

    def __repr__(self) -> str:
        return f"<{len(self)} tensors in {self.path}>"

    def will_need(self, names: Iterable[str]) -> None:
        """Ask the system to read the pages of these tensors ahead. Never fails."""
        advice = getattr(mmap, "MADV_WILLNEED", None)
        if advice is None:
            return
        places = (self._place(name) for name in names if name in self)
        for begin, end in _joined(sorted((place.begin, place.end) for place in places)):
            first = begin - begin % mmap.PAGESIZE
            with suppress(OSError, ValueError, CheckpointError):
                self._map.madvise(advice, first, end - first)

    @cached_property
    def _map(self) -> mmap.mmap:
        with explaining("map a file of weights", self.path):
            file = open_to_read(self.path)
            try:
                size = os.fstat(file).st_size
                last = max((place.end for place in self._places.values()), default=0)
                if size < last:
                    raise CheckpointError(
                        f"The file has {size:,} bytes, and had {last:,} when its header was read",
                        where=str(self.path),
                        fix="do not change files of weights while they are used",
                    )
                return _mapping(file, size)
            finally:
                os.close(file)


def _mapping(file: int, size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(file, size, access=mmap.ACCESS_COPY)
    flags = mmap.MAP_PRIVATE | _NO_RESERVE
    # Writable, because torch takes what it is given for memory that may be written.
    return mmap.mmap(file, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _joined(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield sorted ``ranges``, those that meet as one."""
    begin = end = -1
    for first, last in ranges:
        if first > end:
            if end > begin:
                yield begin, end
            begin = first
        end = max(end, last)
    if end > begin:
        yield begin, end


__all__ = ["DTYPES", "Location", "MappedFile"]
