"""The loader of one rank's own part of the data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NoReturn

import torch
from torch.utils.data import BatchSampler, IterableDataset

from accel_core.errors import DataError, UnevenDataError
from accel_core.protocols.collectives import Collectives
from accel_core.window import GradientWindow, LoaderCursor

from .base import PreparedLoader
from .batches import BatchSamplerShard, Tail
from .placement import Place, placement
from .plan import EpochCounter, LoaderPlan, Synchronize, check_rng_types
from .stream import IterableDatasetShard

_ENDED, _HAS, _FAILED = 0, 1, 2
_NOTHING: Any = object()


class DataLoaderShard(PreparedLoader):
    """A torch ``DataLoader`` that reads one rank's part, puts it on the device and knows its last batch.

    ``device``: where batches go; None leaves them. ``rng_types``: random generators that ranks bring to
    rank 0's state at each iteration; ``synchronized_generator`` is the one meant by ``"generator"``.
    ``skip_batches``: batches left out of the first iteration. ``iteration``: the epoch to start at.
    ``**kwargs``: the arguments of ``torch.utils.data.DataLoader``.

    One batch is read ahead, so that the last one is known while the loop body holds it. The epoch moves on
    by itself, also after a loop that is left early; ``set_epoch`` goes to any.

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
        epoch = self._begin()
        iterator, tail, drop = self._open()
        run = self._watched if self._plan.watch_ends else self._counted
        return run(iterator, tail, drop, epoch)

    def _full_length(self) -> int:
        if isinstance(self.dataset, IterableDatasetShard):
            return -(-len(self.dataset) // self.dataset.local_size)
        return super()._full_length()

    # -- one batch ahead -------------------------------------------------------------------------

    def _counted(self, iterator: Iterator[Any], tail: Tail, drop: int, epoch: int) -> Iterator[Any]:
        plan, window, cursor = self._plan, self._plan.window, self._cursor()
        left = self._known_length()
        cursor.world_batch = self._full_world_batch()
        window.push(cursor)
        try:
            current = next(islice(iterator, drop, None) if drop else iterator, _NOTHING)
            self._compare_orders(tail)
            if current is not _NOTHING:
                place = placement(current, plan.device, non_blocking=plan.non_blocking)
                for upcoming in iterator:
                    if left is not None:
                        cursor.remaining = left
                        # A custom sampler may claim too short a length; then it is not known.
                        left = left - 1 if left > 1 else None
                    cursor.hand_out()
                    yield current if place is None else place(current)
                    current = upcoming
                    cursor.remaining = None
                cursor.end = True
                cursor.remaining = 1
                cursor.valid = tail.valid
                cursor.world_batch = self._last_world_batch(tail)
                cursor.hand_out()
                yield current if place is None else place(current)
            self._finish(epoch)
        finally:
            window.remove(cursor)

    def _full_world_batch(self) -> int | None:
        batches = self._batches
        if isinstance(batches, BatchSamplerShard):
            return batches.round_size
        return batches.batch_size if type(batches) is BatchSampler else None

    def _last_world_batch(self, tail: Tail) -> int | None:
        batches = self._batches
        if isinstance(batches, BatchSamplerShard):
            return tail.world_batch
        counted = not isinstance(self.dataset, IterableDataset) and getattr(self, "in_order", True)
        if counted and type(batches) is BatchSampler:
            rest = 0 if batches.drop_last else len(batches.sampler) % batches.batch_size  # type: ignore[arg-type]
            return rest or batches.batch_size
        return None

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

    # -- streams: ranks tell each other, two batches ahead, whether they have another one --------

    def _watched(self, iterator: Iterator[Any], tail: Tail, drop: int, epoch: int) -> Iterator[Any]:
        plan, window, cursor = self._plan, self._plan.window, self._cursor()
        stream: Any = self.dataset
        full = stream.round_size if self.batch_size is not None else None
        vote = plan.collectives.vote
        place: Place | None = None
        window.push(cursor)
        try:
            batches = _Announced(islice(iterator, drop, None), vote)
            current, ballots = batches.take()
            for number in range(drop, 1 << 62):
                if any(ballot != _HAS for ballot in ballots):
                    break
                if number == drop:
                    place = placement(current[0], plan.device, non_blocking=plan.non_blocking)
                    batches.announce()
                upcoming, ballots = batches.take()
                if all(ballot == _HAS for ballot in ballots):
                    batches.announce()
                batch, counts = current
                cursor.valid, cursor.world_batch = (None, full) if counts is None else counts
                cursor.end = all(ballot == _ENDED for ballot in ballots)
                cursor.remaining = 1 if cursor.end else None
                cursor.hand_out()
                yield batch if place is None else place(batch)
                current = upcoming
            if any(ballots):
                self._report(ballots, number, current)
            self._finish(epoch)
        finally:
            window.remove(cursor)

    def _report(self, ballots: list[int], number: int, own: Any) -> NoReturn:
        if isinstance(own, BaseException):
            raise own
        where = f"rank {self._plan.collectives.rank}, batch {number}"
        failed = [rank for rank, ballot in enumerate(ballots) if ballot == _FAILED]
        if failed:
            raise DataError(
                f"reading the data failed on rank {', '.join(map(str, failed))}",
                where=where,
                fix="see the error of that rank",
            )
        ended = [rank for rank, ballot in enumerate(ballots) if ballot == _ENDED]
        raise UnevenDataError(
            f"the data of rank {', '.join(map(str, ended))} ended before batch {number}, "
            "that of the other ranks goes on",
            ended=ended,
            where=where,
            fix="let every rank read the same stream in the same order (seed it alike); a stream that "
            "already differs by rank must not be prepared, and needs equally many batches on each rank",
        )


class _Announced:
    """Read batches, and tell the other ranks of each one as soon as it is here."""

    def __init__(self, iterator: Iterator[Any], vote: Any) -> None:
        self.iterator = iterator
        self.vote = vote
        self.announce()

    def announce(self) -> None:
        """Read one batch and start the vote on it."""
        try:
            self.batch = next(self.iterator, _NOTHING)
            ballot = _ENDED if self.batch is _NOTHING else _HAS
        except Exception as error:  # noqa: BLE001 - raised again by the loop, after the other ranks know
            self.batch = error
            ballot = _FAILED
        self.answers = self.vote(ballot)

    def take(self) -> tuple[Any, list[int]]:
        """Return the batch and every rank's word on it."""
        return self.batch, self.answers()


__all__ = ["DataLoaderShard", "LoaderCursor"]
