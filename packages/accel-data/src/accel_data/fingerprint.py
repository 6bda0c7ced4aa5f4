"""Short numbers that tell data apart: of the rows of a batch, of one sample, of the head of a stream."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any
from zlib import crc32

import torch
from torch.utils.data import get_worker_info

MOST_ROWS = 32
"""Rows of a batch that are looked at."""
MOST_COLUMNS = 64
"""Elements of a row that are looked at, evenly spread."""
MOST_LEAVES = 8


def leaves_of(data: Any) -> Iterator[Any]:
    """Yield the tensors, arrays, texts and numbers in ``data``, whatever holds them."""
    if isinstance(data, Mapping):
        for key in data:
            yield from leaves_of(data[key])
    elif isinstance(data, (list, tuple)):
        for item in data:
            yield from leaves_of(item)
    elif is_dataclass(data) and not isinstance(data, type):
        for field in fields(data):
            yield from leaves_of(getattr(data, field.name))
    elif data is not None:
        yield data


def _bytes(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a small tensor."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    if flat.dtype is torch.bool:
        flat = flat.to(torch.uint8)
    raw = flat.view(torch.uint8)
    try:
        return bytes(raw.numpy().tobytes())
    except RuntimeError:  # torch without NumPy
        return bytes(raw.tolist())


def _spread(tensor: torch.Tensor, most: int = MOST_ROWS) -> torch.Tensor:
    """Return a few elements of each of the first rows: shape ``[rows, columns]``."""
    rows = tensor.detach()[:most]
    rows = rows.reshape(rows.shape[0], -1)
    step = -(-rows.shape[1] // MOST_COLUMNS)
    return rows[:, ::step] if step > 1 else rows


def rows_of(batch: Any, most: int = MOST_ROWS) -> list[int]:
    """Return a number for each of the first rows of ``batch``; empty when it has no rows to look at.

    Two rows with the same number hold the same values wherever they were looked at.
    """
    found: list[int] = []
    seen = 0
    for leaf in _columns(batch):
        try:
            cells = _cells(leaf, most)
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            continue  # sparse, nested or otherwise without rows of bytes
        if cells and (not found or len(cells) == len(found)):
            found = [crc32(cell, mark) for cell, mark in zip(cells, found or [0] * len(cells), strict=True)]
            seen += 1
        if seen == MOST_LEAVES:
            break
    return found


def _columns(batch: Any) -> Iterator[Any]:
    """Yield what holds one value for each row: tensors, arrays and lists of plain values."""
    if isinstance(batch, (list, tuple)) and batch and isinstance(batch[0], (str, bytes, int, float)):
        yield batch
    elif isinstance(batch, Mapping):
        for key in batch:
            yield from _columns(batch[key])
    elif isinstance(batch, (list, tuple)):
        for item in batch:
            yield from _columns(item)
    elif is_dataclass(batch) and not isinstance(batch, type):
        for field in fields(batch):
            yield from _columns(getattr(batch, field.name))
    elif getattr(batch, "shape", ()):
        yield batch


def _cells(leaf: Any, most: int) -> list[bytes]:
    if isinstance(leaf, (list, tuple)):
        return [repr(value).encode() for value in leaf[:most]]
    tensor = leaf if isinstance(leaf, torch.Tensor) else torch.as_tensor(leaf)
    rows = _spread(tensor, most)
    raw = _bytes(rows)
    size = len(raw) // max(1, len(rows))
    return [raw[at : at + size] for at in range(0, len(raw), size)] if size else []


Marks = tuple[int, int]
"""Of what names things (texts, whole numbers), and of what measures them (floats, pictures); 0: none."""


def sample_marks(sample: Any, marks: Marks = (0, 0)) -> Marks:
    """Return two numbers for a sample, or for one more sample after those of ``marks``.

    They are apart because random changes to the data touch what is measured and leave what names it.
    """
    names, values = marks
    for number, leaf in enumerate(leaves_of(sample)):
        if number == MOST_LEAVES:
            break
        text, exact = _leaf_bytes(leaf)
        if exact:
            names = crc32(text, names) or 1
        elif text:
            values = crc32(text, values) or 1
    return names, values


def _leaf_bytes(leaf: Any) -> tuple[bytes, bool]:
    if isinstance(leaf, (str, int)):
        return repr(leaf).encode(), True
    if isinstance(leaf, (bytes, bytearray)):
        return bytes(leaf), True
    if isinstance(leaf, (float, complex)):
        return repr(leaf).encode(), False
    try:
        if hasattr(leaf, "shape"):
            tensor = leaf if isinstance(leaf, torch.Tensor) else torch.as_tensor(leaf)
            few = _spread(tensor.reshape(1, -1))
            return _bytes(few), not (few.is_floating_point() or few.is_complex())
        if callable(getattr(leaf, "tobytes", None)):
            return bytes(leaf.tobytes()), False
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        pass
    return b"", False


@contextmanager
def same_randomness() -> Iterator[None]:
    """Put the global generators where they are on all ranks, and back afterwards."""
    numpy: Any = sys.modules.get("numpy")
    states = torch.get_rng_state(), random.getstate(), numpy and numpy.random.get_state()
    torch.default_generator.manual_seed(0)
    random.seed(0)
    if numpy:
        numpy.random.seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy:
            numpy.random.set_state(states[2])


class _Slots:
    """Two numbers that a worker process writes and its parent reads; zeros: nothing was found."""

    def __init__(self, *, shared: bool) -> None:
        slots = torch.zeros(3, dtype=torch.int64)
        self.slots: torch.Tensor = slots.share_memory_() if shared else slots  # type: ignore[no-untyped-call]

    def found(self) -> Marks:
        """Return the marks that were found."""
        names, values, _ = self.slots.tolist()
        return names, values


class Probe(_Slots):
    """Read one sample where the loader reads: in its first worker process, or in this one.

    Every rank reads the same place of its data set, twice, with the global generators alike: equal data
    gives equal marks on all ranks, and what is not the same twice says nothing.
    """

    def __init__(self, place: int, init: Any, *, shared: bool) -> None:
        super().__init__(shared=shared)
        self.place = place
        self.init = init
        """The ``worker_init_fn`` in whose place this one is called."""

    def __call__(self, worker: int) -> None:
        """Do what ``worker_init_fn`` did, and read in the first worker."""
        if self.init is not None:
            self.init(worker)
        info: Any = get_worker_info()
        if worker == 0 and info is not None and not self.slots.any():
            self.read(info.dataset)

    def read(self, dataset: Any) -> None:
        """Read the sample and keep its marks."""
        try:
            with same_randomness():
                first = sample_marks(dataset[self.place])
            with same_randomness():
                again = sample_marks(dataset[self.place])
        except Exception:  # noqa: BLE001 - a data set that has no such place; the loop will say what is wrong
            return
        if first == again:
            self.slots[0], self.slots[1] = first


class StreamHead(_Slots):
    """Keep the marks of the first samples of a stream that every rank reads."""

    def __call__(self, samples: list[Any]) -> None:
        """Look at the first round, in the first worker or in this process."""
        info: Any = get_worker_info()
        if info is not None and info.id:
            return
        marks: Marks = (0, 0)
        alone = set()
        for sample in samples[:MOST_ROWS]:
            marks = sample_marks(sample, marks)
            alone.add(sample_marks(sample))
        self.slots[0], self.slots[1] = marks
        self.slots[2] = len(alone)

    def distinct(self) -> int:
        """Return how many of the samples differ from each other."""
        return int(self.slots[2])

    def repeats(self, shard: Any) -> bool:
        """Tell whether a fresh iteration of the stream starts with the same sample as another one."""
        try:
            first, again = iter(shard.unsharded), iter(shard.unsharded)
            return first is not again and sample_marks(next(first)) == sample_marks(next(again))
        except Exception:  # noqa: BLE001 - a stream that can be read once proves nothing
            return False


__all__ = [
    "MOST_ROWS",
    "Marks",
    "Probe",
    "StreamHead",
    "leaves_of",
    "rows_of",
    "same_randomness",
    "sample_marks",
]
