"""One file of weights, flushed to the device: safetensors, or what ``torch.save`` writes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import torch

from accel_core.errors import CheckpointError
from accel_core.trouble import explaining

from ..checkpoint.files import Files, write_all
from ..checkpoint.tensor_file import CODES, pieces
from .shards import Shard

Writer = Callable[[Files, Path, Shard], None]


def write_safe(files: Files, path: Path, shard: Shard) -> None:
    """Write a new file of safetensors piece by piece; no tensor on the CPU is copied. Raises CheckpointError.

    Further names of a tensor are texts in the header, as the library's own ``save_model`` has them.
    """
    _write(files, path, lambda put: deque(map(put, pieces(shard.tensors, shard.tied)), maxlen=0))


def check_safe(shard: Shard) -> None:
    """Raise CheckpointError that names the tensors whose dtype the format does not know."""
    unknown = [
        f"{name!r}: {value.dtype}" for name, value in shard.tensors.items() if value.dtype not in CODES
    ]
    if unknown:
        raise CheckpointError(
            f"safetensors has no name for the dtype of {len(unknown)} tensors",
            where=f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}",
            fix="convert them, or pass safe_serialization=False",
        )


def write_pickled(files: Files, path: Path, shard: Shard) -> None:
    """Write a new file with ``torch.save``. Raises CheckpointError."""
    # torch.save writes whole storages: of a part of one, everything.
    whole = {name: _own(tensor) for name, tensor in shard.tensors.items()}
    content = whole | {name: whole[first] for name, first in shard.tied.items()}
    _write(files, path, lambda put: torch.save(content, cast("IO[bytes]", _Stream(put))))


def write_text(files: Files, path: Path, text: bytes) -> None:
    """Write a new file. Raises CheckpointError."""
    _write(files, path, lambda put: put(memoryview(text)))


def _own(tensor: torch.Tensor) -> torch.Tensor:
    # On the CPU, so that a machine without the device that it was on can read it.
    tensor = tensor.cpu()
    used = tensor.numel() * tensor.element_size()
    return tensor if tensor.untyped_storage().nbytes() == used else tensor.clone()


class _Stream:
    """What ``torch.save`` asks of a file."""

    def __init__(self, put: Callable[[memoryview], None]) -> None:
        self._put = put

    def write(self, data: bytes) -> int:
        self._put(memoryview(data))
        return len(data)

    def flush(self) -> None:
        pass


def _write(files: Files, path: Path, content: Callable[[Callable[[memoryview], None]], object]) -> None:
    # torch reports of a failed write what follows from it.
    trouble: list[OSError] = []

    def put(data: memoryview) -> None:
        try:
            write_all(files, file, data)
        except OSError as error:
            trouble.append(error)
            raise

    with explaining("write a file of weights", path):
        file = files.create(path)
        try:
            content(put)
            files.sync(file)
        except RuntimeError:
            if trouble:
                raise trouble[0] from None
            raise
        finally:
            os.close(file)


__all__ = ["Writer", "check_safe", "write_pickled", "write_safe", "write_text"]
