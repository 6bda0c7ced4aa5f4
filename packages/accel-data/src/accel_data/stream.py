"""One rank's samples of a stream, with the word on which of them are padding travelling with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, cycle, islice
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from accel_core.errors import DataError, PrepareError
from accel_core.nested import first_leaf


class IterableDatasetShard(IterableDataset[Any]):
    """Give one rank its part of every round of an iterable dataset.

    Every rank reads the same stream. A round has ``batch_size * num_processes`` samples
    (``split_batches=True``: ``batch_size``); rank r gets the r-th part of it. The last round is completed
    with the first samples of the stream; ``drop_last`` drops it instead, and ``even_batches=False`` leaves
    it as it is, so that ranks end at different steps.

    In several worker processes a dataset that splits itself among them (it reads ``get_worker_info().id``
    before its first sample) keeps its own split: rounds are cut from each worker's part, and each part has
    a last round. For any other dataset the rounds are dealt to the workers in turn, which gives the order
    of no workers at all: nothing twice, nothing lost; each worker reads the whole stream.

    Raises:
        PrepareError: rank outside of the world, or a batch size that cannot be split.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        drop_last: bool = False,
        num_processes: int = 1,
        process_index: int = 0,
        split_batches: bool = False,
        *,
        even_batches: bool = True,
    ) -> None:
        if not 0 <= process_index < num_processes:
            raise PrepareError(
                f"process_index={process_index} is not one of {num_processes} processes",
                where="IterableDatasetShard",
                fix=f"pass a process_index from 0 to {num_processes - 1}",
            )
        if split_batches and batch_size > 1 and batch_size % num_processes:
            raise PrepareError(
                f"batch_size={batch_size} cannot be split into {num_processes} equal parts",
                where="IterableDatasetShard(split_batches=True)",
                fix=f"use a batch size that divides by {num_processes}, or split_batches=False",
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.num_processes = num_processes
        self.process_index = process_index
        self.split_batches = split_batches
        self.even_batches = even_batches
        self.epoch = 0
        self.marks = False
        """Wrap the samples of a completed round in :class:`Marked`, for :class:`CarryValidity`."""
        self.look: Callable[[list[Any]], None] | None = None
        """Sees the first round of each iteration, of all ranks."""
        self.measure: Callable[[Any], int] | None = None
        """How many samples one item holds, where the dataset yields whole batches; None: one."""
        self.skip = 0
        """Samples that the next iteration leaves out before it cuts rounds."""
        self.jump: tuple[Any, Any] | None = None
        """States of the dataset where the epoch began, and where its next iteration goes on."""
        self.dealing: torch.Tensor | None = None
        """Where workers tell how they read: 1 in turn, 2 each its own part; None: they need not."""

    @property
    def unsharded(self) -> Any:
        """The user's dataset."""
        return self.dataset

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to a dataset that has a ``set_epoch``."""
        self.epoch = epoch
        tell = getattr(self.dataset, "set_epoch", None)
        if callable(tell):
            tell(epoch)

    @property
    def local_size(self) -> int:
        """Samples of one rank in a full round."""
        size = self.batch_size
        return max(1, size // self.num_processes) if self.split_batches else size

    @property
    def round_size(self) -> int:
        """Samples of a full round over all ranks."""
        return self.local_size * self.num_processes

    def __len__(self) -> int:
        """Return this rank's samples when the dataset knows its length; without workers it is exact."""
        full, rest = divmod(len(self.dataset), self.round_size)
        if self.drop_last or not rest:
            return full * self.local_size
        mine = min(max(rest - self.process_index * self.local_size, 0), self.local_size)
        return full * self.local_size + (self.local_size if self.even_batches else mine)

    def deals(self) -> bool:
        """Tell whether workers are known to take turns, so that the order is the one without workers."""
        return self.dealing is not None and int(self.dealing[0]) == 1

    def __iter__(self) -> Iterator[Any]:
        # Taken now: what is set for one iteration is put back once it has been started.
        return self._samples(self.skip, self.jump)

    def _samples(self, skip: int, jump: tuple[Any, Any] | None) -> Iterator[Any]:
        for samples, counts in self._rounds(skip, jump):
            if counts is not None and self.marks:
                for sample in samples:
                    yield Marked(sample, counts)
            else:
                yield from samples

    def _rounds(
        self, skip: int = 0, jump: tuple[Any, Any] | None = None
    ) -> Iterator[tuple[list[Any], Counts | None]]:
        """Yield this rank's part of each round, and the counts of a round where some samples are padding."""
        size, stride = self.local_size, self.round_size
        stream, share, turn, first = self._open(skip, jump)
        mine = slice(self.process_index * size, (self.process_index + 1) * size)
        number = 0
        while block := list(islice(stream, stride)):
            first = first or block
            if number == 0 and self.look is not None:
                self.look(first)
            counts = None
            if len(block) < stride:
                if self.drop_last:
                    return
                if self.even_batches and self.num_processes > 1:
                    valid, real = self._count(block), block[mine]
                    block.extend(islice(cycle(list(first)), stride - len(block)))
                    counts = valid, self._count(block), self._count(real)
            if number % share == turn and block[mine]:
                yield block[mine], counts
            number += 1

    def _open(self, skip: int, jump: tuple[Any, Any] | None) -> tuple[Iterator[Any], int, int, list[Any]]:
        """Start to read; return the stream, how its rounds go round, and the first round if it is over."""
        first: list[Any] = []
        if jump is not None:
            self.dataset.load_state_dict(jump[0])
            first = list(islice(iter(self.dataset), self.round_size))
            self.dataset.load_state_dict(jump[1])
        stream, share, turn, own = _open_stream(self.dataset)
        if self.dealing is not None:
            self.dealing[0] = 2 if own else 1
        if skip and own:
            raise DataError(
                "each worker process reads a part of the stream that the dataset gives it, so where the run "
                "was in the whole cannot be found on other ranks or in batches of another size",
                where=f"rank {self.process_index} of {self.num_processes}",
                fix="resume with as many ranks and workers and the same batch size, or with num_workers=0",
            )
        if skip:
            first = list(islice(stream, self.round_size))
            stream = islice(chain(first, stream), skip, None)
        return stream, share, turn, first

    def _count(self, block: list[Any]) -> int:
        return len(block) if self.measure is None else sum(map(self.measure, block))


Counts = tuple[int, int, int]
"""The real samples of a round over all ranks, all with padding, and the real ones of this rank."""


class Marked:
    """A sample of a completed round, with the counts of that round."""

    __slots__ = ("counts", "sample")

    def __init__(self, sample: Any, counts: Counts) -> None:
        self.sample = sample
        self.counts = counts


class CarryValidity:
    """Collate as the user does, and return the batch with the counts that its samples carry."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, data: Any) -> tuple[Any, Counts | None]:
        """Return ``(batch, counts)``; None for a batch without padding."""
        if isinstance(data, Marked):
            return self.collate(data.sample), data.counts
        if isinstance(data, list) and data and isinstance(data[-1], Marked):
            return self.collate([marked.sample for marked in data]), data[-1].counts
        return self.collate(data), None


def count_rows(item: Any) -> int:
    """Return the samples of a batch: the first dimension of its first tensor, or the length of its list.

    1 when it has neither.
    """
    if type(item) is torch.Tensor and item.dim():
        return item.shape[0]
    tensor = first_leaf(item, lambda leaf: isinstance(leaf, torch.Tensor) and leaf.dim() > 0)
    if tensor is not None:
        return int(tensor.shape[0])
    if isinstance(item, Mapping):
        item = next(iter(item.values()), None)
    return len(item) if isinstance(item, (list, tuple)) else 1


class SkippedStream(IterableDataset[Any]):
    """A stream without its first samples, which are read and dropped."""

    def __init__(self, dataset: Any, skip: int) -> None:
        self.dataset = dataset
        self.skip = skip

    @property
    def unsharded(self) -> Any:
        """The user's dataset."""
        return self.dataset

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.dataset), self.skip, None)


def _open_stream(dataset: Any) -> tuple[Iterator[Any], int, int, bool]:
    """Start to read; return the stream, among how many workers its rounds go round, and this one's turn.

    Last: whether the dataset gives each worker a part of its own.
    """
    info: Any = get_worker_info()
    if info is None or info.num_workers == 1:
        return iter(dataset), 1, 0, False
    workers, worker = info.num_workers, info.id
    plain = type(info)
    reads: list[str] = []

    class Watched(plain):  # type: ignore[misc, valid-type]
        __slots__ = ()

        def __getattribute__(self, name: str) -> Any:
            if name == "id":
                reads.append(name)
            return super().__getattribute__(name)

    # The same object keeps its data and only reports who looks at it; torch freezes its attributes.
    object.__setattr__(info, "__class__", Watched)
    try:
        stream = iter(dataset)
        head = list(islice(stream, 1))
    finally:
        object.__setattr__(info, "__class__", plain)
    share, turn = (1, 0) if reads else (workers, worker)
    return chain(head, stream), share, turn, bool(reads)


__all__ = ["CarryValidity", "IterableDatasetShard", "Marked", "SkippedStream", "count_rows"]
