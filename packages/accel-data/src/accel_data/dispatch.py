"""The loader that only rank 0 reads; the other ranks get their part from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch.utils.data import DataLoader

from accel_core.cursor import LoaderCursor
from accel_core.errors import DataError, PrepareError
from accel_core.logging import get_logger
from accel_core.protocols.collectives import Collectives
from accel_core.window import GradientWindow

from .base import PreparedLoader
from .batches import BatchSamplerShard
from .ending import NOTHING
from .parcels import Parcel, fill_from, join_batches, pack, rows, slice_batch, unpack
from .placement import mover
from .plan import EpochCounter, LoaderPlan
from .position import check_order
from .progress import Run
from .tail import Tail

logger = get_logger(__name__)

_T = TypeVar("_T")


class _Round(NamedTuple):
    """One round on rank 0: the part of each rank, or the whole for a slice function."""

    parts: list[Any]
    sizes: list[int]
    """Samples of each rank, padding included."""
    valid: int | None


class _Head(NamedTuple):
    """What rank 0 says about a round before its tensors follow."""

    parcel: Parcel
    end: bool
    remaining: int | None = None
    sizes: tuple[int, ...] = ()
    """Samples of each rank, padding included."""
    valid: int | None = None
    following: int = 0
    """Ranks that have a part of the next round."""
    failure: str = ""


class DataLoaderDispatcher(PreparedLoader):
    """A torch ``DataLoader`` read by rank 0 alone, which sends every rank its part of each round.

    For data that only one process can read. It is used on request only (``dispatch_batches=True``): all
    data passes through one process, so sharded reading is the default, for iterable datasets too.

    ``split_batches=False``: rank 0 reads a batch for each rank, and rank r gets the r-th one whole; shapes
    may differ between batches. ``split_batches=True``: each batch is cut into equal parts, first dimension,
    in rank order. With ``slice_fn`` the batches of a round are joined, and each rank calls
    ``slice_fn(data, tensor_slice, process_index, num_processes)`` on the whole. The last round is completed
    with the first samples of the epoch (``even_batches``), or dropped (``drop_last``).

    Raises:
        PrepareError: a batch size that cannot be split.
        DataError: while iterating, a batch that cannot be cut, or, on every rank, rank 0 failed to read.
    """

    def __init__(
        self,
        dataset: Any,
        split_batches: bool = False,
        skip_batches: int = 0,
        use_stateful_dataloader: bool = False,
        _drop_last: bool = False,
        _non_blocking: bool = False,
        slice_fn: Callable[..., Any] | None = None,
        torch_device_mesh: Any = None,
        iteration: int = 0,
        *,
        device: torch.device | str | None = None,
        even_batches: bool = True,
        collectives: Collectives | None = None,
        window: GradientWindow | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dataset, **kwargs)
        plan = LoaderPlan(
            device=None if device is None else torch.device(device),
            non_blocking=_non_blocking,
            skip=skip_batches,
            epoch=EpochCounter(iteration),
        )
        plan.collectives = collectives or plan.collectives
        plan.window = window or plan.window
        self._configure(split_batches=split_batches, even_batches=even_batches, slice_fn=slice_fn)
        self._adopt(plan)
        self._check()

    @classmethod
    def dispatch(
        cls,
        loader: DataLoader[Any],
        plan: LoaderPlan,
        replaced: dict[str, Any],
        *,
        split_batches: bool,
        even_batches: bool,
        slice_fn: Callable[..., Any] | None,
    ) -> Self:
        """Return ``loader`` rebuilt as a dispatcher."""
        new = cls.rebuild(loader, plan, **replaced)
        new._configure(split_batches=split_batches, even_batches=even_batches, slice_fn=slice_fn)
        new._check()
        return new

    _reader_alone = True

    def _configure(
        self, *, split_batches: bool, even_batches: bool, slice_fn: Callable[..., Any] | None
    ) -> None:
        self.split_batches = split_batches
        self.even_batches = even_batches
        self.slice_fn = slice_fn

    def _check(self) -> None:
        if self._plan.uneven == "cycle" and not self.even_batches:
            raise PrepareError(
                "with one reader no rank can begin again while the others go on",
                where="DataLoaderDispatcher, uneven='cycle'",
                fix="use even_batches=True, which completes the last round, or uneven='pad_masked' or "
                "'stop_all'",
            )
        size, world = self._batch_size(), self._plan.collectives.world_size
        if self.split_batches and size is not None and size % world:
            raise PrepareError(
                f"batch_size={size} cannot be split into {world} equal parts",
                where="DataLoaderDispatcher(split_batches=True)",
                fix=f"use a batch size that divides by {world}, or split_batches=False",
            )

    def _batch_size(self) -> int | None:
        size = getattr(self.batch_sampler, "batch_size", self.batch_size)
        return None if size is None else int(size)

    def _drops_last(self) -> bool:
        return bool(getattr(self.batch_sampler, "drop_last", False) or self.drop_last)

    def _ranks_per_batch(self) -> int:
        return 1 if self.split_batches else self._plan.collectives.world_size

    def _full_length(self) -> int:
        total, per_round = super()._full_length(), self._ranks_per_batch()
        full, rest = divmod(total, per_round)
        if not rest or self._drops_last():
            return full
        return full + (1 if self.even_batches or rest > self._plan.collectives.rank else 0)

    # -- iteration -------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        plan, window, cursor = self._plan, self._plan.window, self._cursor()
        run = self._begin()
        if run.resumed is not None and run.resumed.ended:
            self._finish(run)
            return
        heads = self._read(run) if plan.collectives.rank == 0 else self._listen()
        place = None if plan.device is None else mover(plan.device, non_blocking=plan.non_blocking)
        window.push(cursor)
        run.begin(cursor)
        try:
            for head, buffer in heads:
                batch = self._own_part(head, buffer)
                if batch is not NOTHING:
                    self._tell_cursor(cursor, head)
                    yield cursor.hand_out(batch if place is None else place(batch))
            self._finish(run)
        finally:
            run.close()
            window.remove(cursor)

    def _tell_cursor(self, cursor: LoaderCursor, head: _Head) -> None:
        rank = self._plan.collectives.rank
        cursor.end = head.end or rank >= head.following
        cursor.remaining = 1 if cursor.end else head.remaining
        cursor.valid = cursor.own = None
        tail = Tail()
        tail.parts, tail.valid = list(head.sizes), head.valid
        tail.tell(cursor, rank)

    def _own_part(self, head: _Head, buffer: torch.Tensor) -> Any:
        rank, world = self._plan.collectives.rank, self._plan.collectives.world_size
        if self.slice_fn is not None:
            whole = unpack(head.parcel.outlines[0], buffer)
            size = -(-rows(whole) // world)
            part = slice(rank * size, (rank + 1) * size)
            return self.slice_fn(whole, part, process_index=rank, num_processes=world)
        if rank >= len(head.parcel.outlines):
            return NOTHING
        return unpack(head.parcel.outlines[rank], buffer)

    def _listen(self) -> Iterator[tuple[_Head, torch.Tensor]]:
        """Receive rounds until the last one."""
        group, device = self._plan.collectives, self._plan.device
        end = False
        while not end:
            head: _Head = group.broadcast_object(None)
            if head.failure:
                raise DataError(
                    f"rank 0 failed to read the batch that it dispatches: {head.failure}",
                    where=f"rank {group.rank}, DataLoaderDispatcher",
                    fix="see the error of rank 0",
                )
            end = head.end
            if head.parcel.outlines:
                yield head, group.broadcast(torch.empty(head.parcel.size, dtype=torch.uint8, device=device))

    def _read(self, run: Run) -> Iterator[tuple[_Head, torch.Tensor]]:
        """Read rounds, one ahead, and send each to the other ranks."""
        group, device = self._plan.collectives, self._plan.device
        with run.apart:
            rounds, left = self._or_tell(partial(self._start, run))
            ahead = self._or_tell(lambda: next(rounds, None))
        run.settle()
        self._or_tell(lambda: check_order(run))
        if ahead is None:
            group.broadcast_object(_Head(Parcel([], 0), end=True))
        while ahead is not None:
            parts, sizes, valid = ahead
            ahead = self._or_tell(lambda: next(rounds, None))
            parcel, buffer = self._or_tell(partial(pack, parts))
            end = ahead is None
            following = 0 if ahead is None else sum(map(bool, ahead.sizes))
            head = _Head(parcel, end, 1 if end else left, tuple(sizes), valid, following)
            group.broadcast_object(head)
            left = left - 1 if left is not None and left > 1 else None
            yield head, group.broadcast(buffer if device is None else buffer.to(device))

    def _start(self, run: Run) -> tuple[Iterator[_Round], int | None]:
        iterator, _, drop = self._open(run)
        pool: list[Any] = []
        course = self._course()
        head = self._ranks_per_batch() if drop else 0 if course is None else course.head
        if head and self.even_batches:
            # The last round is completed with the first samples of the epoch.
            pool = list(islice(iterator, min(head, drop) if drop else head))
            drop -= len(pool) if drop else 0
        left, resumed = self._known_length(), run.resumed
        if left is not None and resumed is not None:
            left = left - resumed.batches if resumed.same else None
        return self._rounds(islice(iterator, drop, None), pool), left

    def _set_out(self, course: BatchSamplerShard, run: Run | None) -> None:
        super()._set_out(course, run)
        course.start *= self._ranks_per_batch()
        course.settle = None
        fills = self.even_batches and self._plan.collectives.world_size > 1 and not self._drops_last()
        late = course.start > 0 and not course.origin and course.batch_size is not None
        course.head = self._ranks_per_batch() if late and fills else 0

    def _or_tell(self, step: Callable[[], _T]) -> _T:
        """Return what ``step`` returns; when it fails, tell the waiting ranks before the error goes on."""
        try:
            return step()
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            self._plan.collectives.broadcast_object(_Head(Parcel([], 0), end=True, failure=failure))
            raise

    def _rounds(self, batches: Iterator[Any], pool: list[Any]) -> Iterator[_Round]:
        """Yield the parts of each round, the last one completed, dropped or left short as asked.

        ``pool``: the batches of the first round of the epoch, if they are not the first of these.
        """
        per_round = self._ranks_per_batch()
        ahead = list(islice(batches, per_round))
        while ahead:
            taken = ahead
            pool = pool or taken
            ahead = list(islice(batches, per_round))
            counts = [rows(batch) for batch in taken]
            real = sum(counts)
            if not ahead:
                if self._drops_last() and len(taken) < per_round:
                    return
                if self.even_batches and self._plan.collectives.world_size > 1:
                    taken, counts = self._complete(taken, counts, pool)
            total = sum(counts)
            parts, sizes = self._parts(taken, counts, last=not ahead)
            missing = sum(not size for size in sizes)
            if missing and self._plan.uneven == "stop_all":
                self._say_unread(total, missing)
                return
            if missing and self._plan.uneven == "pad_masked":
                parts, sizes = self._repeat(parts, sizes, missing)
                total = sum(sizes)
            yield _Round(parts, sizes, real if total > real else None)

    def _repeat(self, parts: list[Any], sizes: list[int], missing: int) -> tuple[list[Any], list[int]]:
        """Give ranks without a part of the last round that of rank 0, as padding."""
        logger.warning(
            "The last round has batches for %s of %s ranks; the others get padding (uneven='pad_masked')."
            " gather_for_metrics leaves it out; in training, weight the loss with loader.valid_mask.",
            len(parts),
            len(sizes),
        )
        return parts + parts[:1] * missing, sizes[:-missing] + sizes[:1] * missing

    def _say_unread(self, total: int, missing: int) -> None:
        logger.warning(
            "The last round, %s samples, has no part for %s of %s ranks, and all ranks stopped before it"
            " (uneven='stop_all').",
            total,
            missing,
            self._plan.collectives.world_size,
        )

    def _complete(self, taken: list[Any], counts: list[int], pool: list[Any]) -> tuple[list[Any], list[int]]:
        """Fill the last batch and the missing ones with the first samples."""
        sizes = [rows(batch) for batch in pool]
        size = self._batch_size() or max(sizes[0], counts[-1])
        if self.split_batches:
            world = self._plan.collectives.world_size
            size = max(size, -(-counts[-1] // world) * world)
        short = max(0, size - counts[-1])
        missing = self._ranks_per_batch() - len(taken)
        fill = fill_from(pool, sizes, [short] * bool(short) + [size] * missing)
        taken, counts = list(taken), list(counts)
        if short:
            taken[-1] = join_batches([taken[-1], next(fill)], [counts[-1], short])
            counts[-1] += short
        return taken + list(fill), counts + [size] * missing

    def _parts(self, taken: list[Any], counts: list[int], *, last: bool) -> tuple[list[Any], list[int]]:
        """Return what is sent, and the samples of each rank in it."""
        world = self._plan.collectives.world_size
        if self.slice_fn is None and not self.split_batches:
            return taken, counts + [0] * (world - len(counts))
        count = sum(counts)
        size = -(-count // world)
        sizes = [min(max(count - rank * size, 0), size) for rank in range(world)]
        if self.slice_fn is not None:
            return [join_batches(taken, counts)], sizes
        if count % world and not last:
            raise DataError(
                f"a batch of {count} samples cannot be split into {world} equal parts",
                where="DataLoaderDispatcher(split_batches=True)",
                fix=f"yield batches whose size divides by {world}, or use split_batches=False",
            )
        return [slice_batch(taken[0], slice(at, at + size), count) for at in range(0, count, size)], sizes


__all__ = ["DataLoaderDispatcher"]
