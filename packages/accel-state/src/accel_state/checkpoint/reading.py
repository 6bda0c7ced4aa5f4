"""Read parts of a file straight into tensors, on all cores: no mapping, and no memory in between."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from accel_core.errors import CheckpointError
from accel_core.paths import open_to_read
from accel_core.trouble import explaining

Part = tuple[int, memoryview]
"""Where in the file, and where to."""

_PIECE = 16 << 20
_MOST_THREADS = 8


def read_parts(path: Path, wanted: Iterable[tuple[int, torch.Tensor]]) -> None:
    """Fill contiguous tensors on the CPU with the bytes of ``path`` that begin at the given places.

    Raises CheckpointError when the file cannot be read, or ends before.
    """
    pieces = [piece for begin, tensor in wanted for piece in _pieces(begin, tensor)]
    with explaining("read a file of the checkpoint", path):
        file = open_to_read(path)
        try:
            threads = min(_MOST_THREADS, os.cpu_count() or 1, len(pieces))
            if threads < 2:
                for piece in pieces:
                    _read(file, piece, path)
                return
            # The largest last would leave the other threads waiting: pieces are of one size, nearly.
            with ThreadPoolExecutor(threads, "accel-read") as pool:
                list(pool.map(lambda piece: _read(file, piece, path), pieces))
        finally:
            os.close(file)


def _pieces(begin: int, tensor: torch.Tensor) -> Iterable[Part]:
    count = tensor.numel() * tensor.element_size()
    if not count:
        return
    memory = memoryview((ctypes.c_char * count).from_address(tensor.data_ptr())).cast("B")
    for start in range(0, count, _PIECE):
        yield begin + start, memory[start : start + _PIECE]


def _read(file: int, piece: Part, path: Path) -> None:
    place, memory = piece
    while memory:
        count = os.preadv(file, [memory], place)
        if not count:
            raise CheckpointError(
                f"{path.name} became shorter while it was read",
                where=f"{path}, byte {place:,}",
                fix="nothing may write to a checkpoint; use the one before it",
            )
        place, memory = place + count, memory[count:]


__all__ = ["read_parts"]
