"""One rank's batches of a batch sampler."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, cycle, islice
from typing import Any
from zlib import crc32

from torch.utils.data import BatchSampler

from accel_core.errors import DataError, PrepareError

from .order import Reading, local_slices, own_rounds, reading_of
from .tail import FIRST, Tail


class BatchSamplerShard(BatchSampler):
    """Give one rank its part of every round of a batch sampler.

    ``split_batches=False``: rank r gets batches r, r + W, r + 2W, ... of the ``W = num_processes`` ranks;
    the batch size is that of one rank. ``split_batches=True``: each batch is cut into W equal parts; the
    batch size is that of the world and must divide by W.

    ``even_batches=True``: the last round is completed with the first samples of the epoch, so that all
    ranks get the same number of batches of the same size; padding always comes last in rank order.
    False: the last round ends where the data ends; some ranks get a short batch or none.
    With ``drop_last`` an incomplete round is dropped on every rank. One process changes nothing.

    A plain torch ``BatchSampler`` over a sequential, random, seedable or list-like sampler is read by
    index arithmetic: a local batch costs the same on 512 ranks as on 1. Any other sampler or batch
    sampler is walked in full by every rank, as it must be.

    Raises:
        PrepareError: rank outside of the world, a batch size that does not divide by W, or even batches
            of a batch sampler that has no ``batch_size``.
        DataError: while iterating, a batch in the middle that cannot be cut into W parts.
    """

    def __init__(
        self,
        batch_sampler: Any,
        num_processes: int = 1,
        process_index: int = 0,
        split_batches: bool = False,
        even_batches: bool = True,
    ) -> None:
        self.batch_sampler = batch_sampler
        self.num_processes = num_processes
        self.process_index = process_index
        self.split_batches = split_batches
        self.even_batches = even_batches
        self.batch_size: Any = getattr(batch_sampler, "batch_size", None)
        self.drop_last = bool(getattr(batch_sampler, "drop_last", False))
        self.start = 0
        """Local batches that the next iteration leaves out; it goes back to 0 by itself."""
        self.origin = 0
        """Samples of the whole order that the next iteration leaves out before it cuts batches; 0 as well."""
        self.head = 0
        """Batches of the start of the order that are given out although ``start`` leaves them out."""
        self.prime: Callable[[], object] | None = None
        """Called once, before the next iteration draws its order."""
        self.settle: Callable[[], object] | None = None
        """Called once, when the next iteration knows its order, before its first batch is given out."""
        self.record: list[list[Any]] | None = None
        """The batches that were given out, where somebody asks for them."""
        self.tail = Tail()
        """What is known about the last batch of the latest iteration."""
        self._check()

    def _check(self) -> None:
        size, world = self.batch_size, self.num_processes
        if not 0 <= self.process_index < world:
            raise PrepareError(
                f"process_index={self.process_index} is not one of {world} processes",
                where="BatchSamplerShard",
                fix=f"pass a process_index from 0 to {world - 1}",
            )
        if self.split_batches and size is not None and size % world:
            raise PrepareError(
                f"batch_size={size} cannot be split into {world} equal parts",
                where="BatchSamplerShard(split_batches=True)",
                fix=f"use a batch size that divides by {world}, or split_batches=False",
            )
        if size is None and self.even_batches and not self.split_batches and world > 1:
            raise PrepareError(
                f"the batch sampler {type(self.batch_sampler).__name__} has no batch_size, so its last "
                "round cannot be completed to equal batches",
                where="BatchSamplerShard(even_batches=True)",
                fix="give it a batch_size attribute, or pass even_batches=False and expect ranks to end "
                "at different steps",
            )

    # -- sizes -----------------------------------------------------------------------------------

    @property
    def sampler(self) -> Any:
        """The sampler under the batch sampler, or None."""
        return getattr(self.batch_sampler, "sampler", None)

    @sampler.setter
    def sampler(self, sampler: Any) -> None:
        self.batch_sampler.sampler = sampler

    @property
    def total_length(self) -> int:
        """Batches of the whole batch sampler, before sharding."""
        return len(self.batch_sampler)

    @property
    def local_size(self) -> int | None:
        """Samples of a full batch of one rank; None when batches have no fixed size."""
        if self.batch_size is None:
            return None
        size = int(self.batch_size)
        return size // self.num_processes if self.split_batches else size

    @property
    def round_size(self) -> int | None:
        """Samples of a full round over all ranks; None when batches have no fixed size."""
        size = self.local_size
        return None if size is None else size * self.num_processes

    def _plain(self) -> bool:
        return type(self.batch_sampler) is BatchSampler

    def reading(self) -> Reading | None:
        """Return how the order is had by slices; None where it must be walked."""
        return reading_of(self.batch_sampler.sampler) if self._plain() else None

    def __len__(self) -> int:
        world, rank = self.num_processes, self.process_index
        if self._plain():
            size = self.batch_size // world if self.split_batches else self.batch_size
            full, rest = divmod(len(self.batch_sampler.sampler), size * world)
            if self.drop_last or not rest:
                return int(full)
            return int(full) + (1 if self.even_batches or rest > rank * size else 0)
        total = len(self.batch_sampler)
        if self.split_batches:
            return total
        full, rest = divmod(total, world)
        if self.drop_last or not rest:
            return full
        return full + (1 if self.even_batches or rest > rank else 0)

    # -- iteration -------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[list[Any]]:
        # Worker processes ask for two walks and use the second: the start goes when a walk begins.
        start, origin = self.start, self.origin
        self.tail = tail = Tail()
        reading = self.reading()
        if reading is not None:
            return self._recorded(self._arithmetic(reading, tail, start, origin))
        if self.num_processes == 1:
            return self._rest(tail, start, origin)
        tail.walked = True
        return self._recorded(self._walk(tail, start, origin))

    def _begin(self) -> None:
        self.start = self.origin = 0
        act, self.prime = self.prime, None
        if act is not None:
            act()

    def _settled(self) -> None:
        act, self.settle = self.settle, None
        if act is not None:
            act()

    def _recorded(self, batches: Iterator[list[Any]]) -> Iterator[list[Any]]:
        if self.record is None:
            return batches
        self.record = record = []

        def noted() -> Iterator[list[Any]]:
            for batch in batches:
                record.append(batch)
                yield batch

        return noted()

    def _arithmetic(self, reading: Reading, tail: Tail, start: int, origin: int) -> Iterator[list[Any]]:
        world, rank = self.num_processes, self.process_index
        size = self.batch_size // world if self.split_batches else self.batch_size
        stride = size * world
        total = reading.length()
        left = max(0, total - origin)
        full = origin + left // stride * stride
        base = min(origin + start * stride, full)
        rest = 0 if self.drop_last else left % stride
        padded = bool(rest) and self.even_batches and world > 1
        tail.valid = rest if padded else None
        tail.parts = [size] * world
        if rest and not padded:
            tail.parts = [min(max(rest - place * size, 0), size) for place in range(world)]
        has_last = (padded or rest > rank * size) and start <= left // stride
        tail.base, tail.stride, tail.total = base, stride, total
        tail.count = (full - base) // stride + has_last

        def batches() -> Iterator[list[Any]]:
            self._begin()
            # Drawn at the first batch, where plain torch draws: later use of the same generator agrees.
            order = reading.draw()
            # A permutation is not kept for it; what is the user's own is not read for it.
            tail.begins = order[:FIRST] if isinstance(order, array) else order
            last: list[Any] = []
            if has_last:
                at = full + rank * size
                places = range(at, at + size) if padded else range(at, min(at + size, total))
                last = [order[place % total] for place in places]
            yield from local_slices(order, 0, min(self.head * size, total // size * size), size, size)
            self._settled()
            if isinstance(order, array) and world > 1:
                order = own_rounds(order, base, full, stride, rank * size, size)
                yield from local_slices(order, 0, len(order), size, size)
            else:
                yield from local_slices(order, base + rank * size, full, stride, size)
            if last:
                yield last
            if reading.finish is not None:
                reading.finish()

        return batches()

    def _rest(self, tail: Tail, start: int, origin: int) -> Iterator[list[Any]]:
        """Walk the batches of one process."""
        self._begin()
        tail.base = read = origin
        tail.ends = ends = array("q")
        first: list[Any] = []
        tail.begins = first
        batch: Any = None
        for number, batch in enumerate(self._walked(origin, first, FIRST)):
            read += _samples(batch)
            if len(first) < FIRST:
                first.extend(batch if isinstance(batch, (list, tuple)) else [batch])
            if number < start:
                tail.base = read
                if number < self.head:
                    yield batch
                continue
            if not ends:
                self._settled()
            ends.append(read)
            yield batch
        if isinstance(batch, (list, tuple)):
            tail.parts = [len(batch)]

    def _walk(self, tail: Tail, start: int, origin: int) -> Iterator[list[Any]]:
        """Walk the batches of all ranks, and give out this rank's."""
        self._begin()
        rank, world = self.process_index, self.num_processes
        wanted = max(self.batch_size or 0, world) * (1 if self.split_batches else world)
        first: list[Any] = []
        walk = self._walked(origin, first, max(wanted, FIRST))
        rounds = self._split_rounds(walk, first) if self.split_batches else self._whole_rounds(walk, first)
        tail.base = read = origin
        tail.ends = array("q")
        begins: list[Any] = []
        for number, (batches, valid) in enumerate(rounds):
            if number == 0:
                tail.fingerprint = crc32(repr(batches).encode()) & 0x3FFFFFFF
                tail.begins = begins = first[: min(origin, FIRST)]
            if len(begins) < FIRST:
                begins += chain.from_iterable(batches)
            tail.valid = valid
            tail.parts = [*map(len, batches), *[0] * (world - len(batches))]
            read += sum(tail.parts) if valid is None else valid
            if number < start:
                tail.base = read
            elif rank < len(batches) and batches[rank]:
                tail.ends.append(read)
                self._settled()
                yield batches[rank]

    def _walked(self, origin: int, first: list[Any], wanted: int) -> Iterator[Any]:
        """Walk the batch sampler from sample ``origin`` on; ``first`` gets up to ``wanted`` before that."""
        if not origin:
            yield from self.batch_sampler
        elif self._plain():
            samples = iter(self.batch_sampler.sampler)
            before = islice(samples, origin)
            first.extend(islice(before, wanted))
            deque(before, maxlen=0)
            while batch := list(islice(samples, self.batch_size)):
                if len(batch) == self.batch_size or not self.drop_last:
                    yield batch
        else:
            yield from self._cut(origin, first, wanted)

    def _cut(self, origin: int, first: list[Any], wanted: int) -> Iterator[Any]:
        """Walk batches that somebody else has cut; one with ``origin`` in its middle loses its start."""
        for batch in self.batch_sampler:
            size = _samples(batch)
            if origin > 0 and isinstance(batch, (list, tuple)):
                first.extend(batch[: min(origin, max(0, wanted - len(first)))])
            if origin < size:
                yield batch[origin:] if origin > 0 else batch
            origin -= min(origin, size)

    def _whole_rounds(self, walk: Iterator[Any], first: list[Any]) -> Iterator[Round]:
        """Yield the batches of each round, one for each rank."""
        world = self.num_processes
        wanted = world * (self.batch_size or 0) if self.even_batches else 0
        ahead = [list(batch) for batch in islice(walk, world)]
        while ahead:
            batches = ahead
            if len(first) < wanted:
                first.extend(chain.from_iterable(batches))
            ahead = [list(batch) for batch in islice(walk, world)]
            if ahead or (len(batches) == world and self.drop_last):
                yield batches, None
            elif not self.drop_last:
                yield self._complete(batches, first) if self.even_batches else (batches, None)

    def _complete(self, batches: list[list[Any]], first: list[Any]) -> Round:
        """Fill the last batch and the missing ones with the first samples, again and again if need be."""
        size, real = self.batch_size, sum(map(len, batches))
        fill = cycle(first)
        batches[-1].extend(islice(fill, max(0, size - len(batches[-1]))))
        batches.extend(list(islice(fill, size)) for _ in range(self.num_processes - len(batches)))
        return batches, None if sum(map(len, batches)) == real else real

    def _split_rounds(self, walk: Iterator[Any], first: list[Any]) -> Iterator[Round]:
        """Yield each batch cut into one part for each rank."""
        world = self.num_processes
        ahead = next(walk, None)
        number = 0
        while ahead is not None:
            batch = list(ahead)
            ahead = next(walk, None)
            full = -(-len(batch) // world) * world
            if ahead is None:
                full = max(full, self.batch_size or 0)
            if len(first) < max(full, self.batch_size or 0):
                first.extend(batch)
            size = full // world
            real = len(batch)
            if real % world and ahead is not None:
                raise DataError(
                    f"batch {number} has {real} samples and cannot be split into {world} equal parts",
                    where=f"rank {self.process_index}, {type(self.batch_sampler).__name__}",
                    fix=f"yield batches whose size divides by {world}, or use split_batches=False",
                )
            if self.even_batches:
                batch.extend(islice(cycle(first), full - real))
            elif real < full and self.drop_last:
                return
            parts = [batch[at : at + size] for at in range(0, full, size)]
            yield parts, real if len(batch) > real else None
            number += 1


def _samples(batch: Any) -> int:
    """Return the samples of a batch; without batches each item is one."""
    return len(batch) if isinstance(batch, (list, tuple)) else 1


Round = tuple[list[list[Any]], int | None]
"""The batches of all ranks, and how many samples are real when some are padding."""

__all__ = ["BatchSamplerShard", "Tail"]
