"""The loader of one rank's own part of the data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, IterableDataset

from accel_core.errors import DataError
from accel_core.protocols.collectives import Collectives
from accel_core.window import GradientWindow, LoaderCursor

from .base import PreparedLoader
from .batches import BatchSamplerShard
from .ending import NOTHING, Ends, policy
from .placement import placement
from .plan import EpochCounter, LoaderPlan, Synchronize, check_rng_types
from .position import check_order
from .progress import Run
from .stream import IterableDatasetShard
from .tail import Tail
from .tails import last_size, own_tail, sample_count


class DataLoaderShard(PreparedLoader):
    """A torch ``DataLoader`` that reads one rank's part, puts it on the device and knows its last batch.

    ``device``: where batches go; None leaves them. ``rng_types``: random generators that ranks bring to
    rank 0's state at each iteration; ``synchronized_generator`` is the one meant by ``"generator"``.
    ``skip_batches``: batches left out of the first iteration. ``iteration``: the epoch to start at.
    ``**kwargs``: the arguments of ``torch.utils.data.DataLoader``.

    The last batch is known while the loop body holds it: one batch is read ahead where only that tells.
    The epoch moves on by itself, also after a loop that is left early; ``set_epoch`` goes to any.

    Ours, keyword-only: ``collectives`` (the ranks), ``window`` (told of the running loader) and
    ``synchronize`` (how to bring the generators together).

    Raises:
        UnevenDataError: while iterating, the streams of the ranks end at different steps.
        DataError: while iterating, the ranks walk a sampler in different orders, or shuffle different epochs.
    """

    def __init__(
        self,
        dataset: Any,
        device: torch.device | str | None = None,
        rng_types: list[Any] | None = None,
        synchronized_generator: torch.Generator | None = None,
        skip_batches: int = 0,
        use_stateful_dataloader: bool = False,
        _drop_last: bool = False,
        _non_blocking: bool = False,
        torch_device_mesh: Any = None,
        iteration: int = 0,
        *,
        collectives: Collectives | None = None,
        window: GradientWindow | None = None,
        synchronize: Synchronize | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dataset, **kwargs)
        plan = LoaderPlan(
            device=None if device is None else torch.device(device),
            non_blocking=_non_blocking,
            rng_types=check_rng_types(rng_types),
            generator=synchronized_generator,
            skip=skip_batches,
            epoch=EpochCounter(iteration),
            synchronize=synchronize,
        )
        plan.collectives = collectives or plan.collectives
        plan.window = window or plan.window
        self._adopt(plan)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        run = self._begin()
        if run.resumed is not None and run.resumed.ended:
            return self._nothing(run)
        with run.apart:
            chosen = policy(self)
            if chosen is not None and self._known_equal():
                chosen = None
            run.policy = chosen
            iterator, tail, drop = self._open(run)
            if self._plan.audit is not None:
                iterator = self._plan.audit.watch(iterator, self, tail, run.epoch)
        if chosen is None:
            return self._counted(iterator, tail, drop, run)
        return self._watched(iterator, tail, drop, run, chosen)

    def _full_length(self) -> int:
        if isinstance(self.dataset, IterableDatasetShard):
            return -(-len(self.dataset) // self.dataset.local_size)
        return super()._full_length()

    def _nothing(self, run: Run) -> Iterator[Any]:
        """Give the rest of an epoch whose last batch was in hand when its position was saved."""
        self._finish(run)
        yield from ()

    # -- batch by batch --------------------------------------------------------------------------

    def _counted(self, iterator: Iterator[Any], tail: Tail, drop: int, run: Run) -> Iterator[Any]:
        plan, window, cursor = self._plan, self._plan.window, self._cursor()
        exact = None
        if tail.count is not None and self._plainly_iterated():
            exact = tail.count - run.walked
        left = self._left(run) if exact is None else None
        self._tell_size(cursor)
        hand_out = cursor.hand_out
        window.push(cursor)
        run.begin(cursor)
        try:
            with run.apart:
                current = next(islice(iterator, drop, None) if drop else iterator, NOTHING)
            run.settle()
            check_order(run)
            self._compare_orders(tail)
            if current is not NOTHING:
                place = placement(current, plan.device, non_blocking=plan.non_blocking)
                # Where arithmetic tells which batch is the last, none has to be read ahead to know it.
                for number in range(exact or 1, 1, -1):
                    cursor.remaining = number
                    yield hand_out(current if place is None else place(current))
                    current = next(iterator, NOTHING)
                    if current is NOTHING:
                        raise self._too_short(cursor.number, number - 1)
                for upcoming in iterator:
                    if left is not None:
                        cursor.remaining = left
                        # A custom sampler may claim too short a length; then it is not known.
                        left = left - 1 if left > 1 else None
                    yield hand_out(current if place is None else place(current))
                    current = upcoming
                    cursor.remaining = None
                cursor.end = True
                cursor.remaining = 1
                self._tell_last(cursor, tail)
                yield hand_out(current if place is None else place(current))
            self._finish(run)
        finally:
            run.close()
            window.remove(cursor)

    def _too_short(self, given: int, missing: int) -> DataError:
        return DataError(
            f"the loader ended after {given} batches, its sampler has {missing} more",
            where=f"rank {self._plan.collectives.rank}, {type(self).__name__}",
            fix="let the dataset keep its length while it is iterated",
        )

    def _left(self, run: Run) -> int | None:
        """Return the batches ahead, as far as samplers claim a length."""
        length, resumed = self._known_length(), run.resumed
        if length is None or (resumed is not None and (resumed.origin or not resumed.same)):
            return None
        return length + self._plan.skip - run.first

    def _ranks(self) -> int:
        """Return among how many ranks each of the batches sampler's batches is one of a round."""
        return self._plan.collectives.world_size if self._plan.kept else 1

    def _tell_size(self, cursor: LoaderCursor) -> None:
        """Tell ``cursor`` the size of a full batch."""
        batches = self._batches
        if isinstance(batches, BatchSamplerShard):
            cursor.rows, world = batches.local_size, batches.round_size
        else:
            cursor.rows = world = batches.batch_size if type(batches) is BatchSampler else None
        cursor.world_batch = None if world is None else world * self._ranks()

    def _tell_last(self, cursor: LoaderCursor, tail: Tail) -> None:
        """Tell ``cursor`` what is known of the last batch."""
        batches = self._batches
        if self._plan.kept and self._plan.collectives.world_size > 1:
            own_tail(self, cursor, tail)
        elif isinstance(batches, BatchSamplerShard):
            tail.tell(cursor, batches.process_index)
        elif (size := last_size(self, tail)) is not None:
            cursor.world_batch = cursor.rows = size
        else:
            cursor.world_batch = cursor.rows = None

    def _known_equal(self) -> bool:
        """Tell whether the ranks' own samplers are known to give equally many samples; votes once."""
        plan = self._plan
        if not plan.kept or plan.uneven == "independent" or isinstance(self.dataset, IterableDataset):
            return False
        samples = sample_count(self)
        ballot = 0 if samples is None else (len(self) << 32) + samples + 1
        found = plan.collectives.vote(ballot)()
        return found[0] != 0 and len(set(found)) == 1

    def _compare_orders(self, tail: Tail) -> None:
        """Make sure that ranks that walk a custom sampler all see the same order."""
        if not tail.walked or self._plan.collectives.world_size == 1:
            return
        found = self._plan.collectives.vote(tail.fingerprint)()
        if len(set(found)) > 1:
            odd = [rank for rank, mark in enumerate(found) if mark != found[0]]
            raise DataError(
                f"rank {', '.join(map(str, odd))} got other samples from the sampler than rank 0, so "
                "sharding would lose some samples and repeat others",
                where=f"rank {self._plan.collectives.rank}, {type(self.get_sampler()).__name__}, first round",
                fix="shuffle with a torch.Generator that the sampler keeps as .generator (synchronised), or "
                "give rng_types=['torch']; do not prepare a sampler that gives each rank its own part",
            )

    # -- where ranks may end at different steps ----------------------------------------------------

    def _watched(
        self, iterator: Iterator[Any], tail: Tail, drop: int, run: Run, chosen: str
    ) -> Iterator[Any]:
        plan, window, cursor = self._plan, self._plan.window, self._cursor()
        stream: Any = self.dataset
        sized = plan.watch_ends and isinstance(stream, IterableDatasetShard) and self.batch_size is not None
        window.push(cursor)
        run.begin(cursor)
        try:
            with run.apart:
                batches = islice(iterator, drop, None) if drop else iterator
                last = next(batches, NOTHING) if run.repeats else NOTHING
                ends = Ends(
                    batches,
                    chosen,
                    plan.collectives,
                    first=run.first,
                    carried=plan.watch_ends,
                    sizes=(stream.local_size, stream.round_size) if sized else None,
                    again=lambda times: self._again(run.epoch + times),
                    left=lambda: self._left(run),
                    last=last,
                )
                run.known = ends.ended
                current = ends.take()
            run.settle()
            check_order(run)
            self._compare_orders(tail)
            first = None if current is None else current.batch
            place = placement(first, plan.device, non_blocking=plan.non_blocking)
            while current is not None:
                upcoming = ends.take()
                cursor.own, cursor.rows, cursor.again = current.own, current.rows, current.again
                cursor.valid, cursor.world_batch = current.valid, current.world_batch
                # What is followed by an error is not the end of an epoch.
                cursor.end = upcoming is None and ends.trouble is None
                cursor.remaining = 1 if cursor.end else None
                yield cursor.hand_out(current.batch if place is None else place(current.batch))
                current = upcoming
            if ends.trouble is not None:
                raise ends.trouble
            ends.report()
            self._finish(run)
        finally:
            run.close()
            window.remove(cursor)

    def _again(self, epoch: int) -> Iterator[Any]:
        """Start this rank's data anew, as in ``epoch``, without the other ranks."""
        plan = self._plan
        plan.skip = 0
        self._tell_all(epoch)
        if plan.seeding is not None:
            plan.seeding.begin(epoch)
        return self._open()[0]


__all__ = ["DataLoaderShard"]
