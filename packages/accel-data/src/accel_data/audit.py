"""Ranks compare what they read, so that data that is read twice or never does not stay unseen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from accel_core.errors import AuditError, UnknownNameError
from accel_core.protocols.collectives import Collectives

from . import coverage, hf, verdict
from .batches import BatchSamplerShard
from .fingerprint import Probe, StreamHead, rows_of
from .samplers import samplers_of
from .stream import IterableDatasetShard
from .tail import Tail
from .verdict import Seen

AUDIT = ("first_batches", "epoch", "off")
_ENOUGH_ROWS = 16
_GENERATORS = ("Generator", "RandomState", "Random")
_MOST_AHEAD = 8


def make_audit(
    mode: str,
    loader: DataLoader[Any],
    group: Collectives,
    world: int,
    *,
    kept: bool,
    even: bool,
    uneven: str | None,
) -> Audit | None:
    """Return what audits ``loader``, or None where there is nobody to compare with.

    ``kept``, ``even`` and ``uneven``: how the loader is prepared.

    Raises:
        UnknownNameError: ``mode`` is not a known word.
        AuditError: a ``DistributedSampler`` repeats samples at its end.
    """
    if mode not in AUDIT:
        raise UnknownNameError("audit", str(mode), AUDIT)
    if mode == "off" or world == 1:
        return None
    _refuse_repeats(loader)
    if group.world_size != world:
        return None
    return Audit(loader, group, whole_epochs=mode == "epoch", kept=kept, even=even, uneven=uneven)


def _refuse_repeats(loader: DataLoader[Any]) -> None:
    """Refuse repeated samples at the end that are not known as padding, as those of torch's own are."""
    plain = type(loader.batch_sampler) is BatchSampler and type(loader.sampler) is DistributedSampler
    for sampler in [] if plain else samplers_of(loader):
        if not isinstance(sampler, DistributedSampler):
            continue
        length = len(sampler.dataset)  # type: ignore[arg-type]
        extra = sampler.total_size - length
        if extra > 0:
            start = list(range(min(extra, length, 8))) if not sampler.shuffle else []
            raise AuditError(
                f"its {type(sampler).__name__} repeats {extra} of {length} samples at the end, so that "
                f"each of {sampler.num_replicas} gets {sampler.num_samples}: they count twice in metrics",
                ranks=range(sampler.num_replicas - extra, sampler.num_replicas),
                samples=start,
                where="prepare_data_loader",
                fix="give it drop_last=True; or use a plain BatchSampler, or let accel divide "
                "the data: such padding is known and cut off by gather_for_metrics; "
                "DataLoaderConfiguration(audit='off') accepts the repeats",
            )


def shuffles(loader: DataLoader[Any]) -> bool:
    """Tell whether another order is expected in each epoch."""
    if isinstance(loader.dataset, IterableDataset):
        dataset: Any = getattr(loader.dataset, "unsharded", loader.dataset)
        return getattr(dataset, "shuffle", None) is True or hf.shuffle_state(dataset) is not None
    random = RandomSampler, SubsetRandomSampler, WeightedRandomSampler
    return any(
        isinstance(sampler, random)
        or getattr(sampler, "shuffle", None) is True
        or isinstance(getattr(sampler, "generator", None), torch.Generator)
        for sampler in samplers_of(loader)
    )


class Audit:
    """Compare, once in the first iteration of a loader, what its ranks are about to read.

    Which evidence is exact decides what is compared. Where accel divides an indexed data set: the order of
    the samplers, and one sample of each rank's data set. Where it divides a stream: the first samples of
    the stream. Where each rank keeps its own part: the rows of the first batches. Shuffled loaders are
    looked at in their second iteration too; ``whole_epochs`` looks at all of every one.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        group: Collectives,
        *,
        whole_epochs: bool,
        kept: bool,
        even: bool,
        uneven: str | None,
    ) -> None:
        self.group = group
        self.whole_epochs = whole_epochs
        self.kept = kept
        self.uneven = uneven
        """What was asked for where ranks end at different steps."""
        self.together = even
        """Ranks end at the same step, so they may wait for each other there."""
        self.shuffles = shuffles(loader)
        self.left = 2 if self.shuffles else 1
        """Iterations that are still looked at."""
        self.shard: BatchSamplerShard | None = None
        self.probe: Probe | None = None
        self.head: StreamHead | None = None
        self.before: tuple[int, verdict.Order] | None = None
        """The epoch that was read last, and the order it had."""
        self.cover: coverage.Coverage | None = None
        self.pending: coverage.Record | None = None

    def install(self, loader: DataLoader[Any], replaced: dict[str, Any]) -> dict[str, Any]:
        """Put the eyes of the audit into what the loader reads from; return the attributes to replace."""
        dataset = replaced.get("dataset", loader.dataset)
        if self.kept:
            self.cover = coverage.RowCoverage() if self.whole_epochs else None
        elif isinstance(dataset, IterableDatasetShard):
            self.head = dataset.look = StreamHead(shared=loader.num_workers > 0)
        elif not isinstance(dataset, IterableDataset):
            shard = replaced.get("batch_sampler", replaced.get("sampler"))
            if isinstance(shard, BatchSamplerShard):
                self.shard = shard
                # Policies that stop early or begin again read some samples never or twice, as asked.
                if self.whole_epochs and self.uneven is None:
                    shard.record, self.cover = [], coverage.IndexCoverage(loader)
            if (place := _place(dataset)) is not None:
                self.probe = Probe(place, loader.worker_init_fn, shared=loader.num_workers > 0)
                if loader.num_workers:
                    return {"worker_init_fn": self.probe}
        return {}

    # -- one iteration ---------------------------------------------------------------------------

    def watch(self, iterator: Iterator[Any], loader: Any, tail: Tail, epoch: int) -> Iterator[Any]:
        """Return ``iterator``, with the ranks comparing before its first batch where they still do."""
        if self.cover is not None:
            self.cover.begin(loader, tail)
        if not self.left:
            return iterator
        return self._compared(iterator, loader, tail, epoch)

    def _compared(self, iterator: Iterator[Any], loader: Any, tail: Tail, epoch: int) -> Iterator[Any]:
        head = _Ahead(iterator, self._ahead(loader))
        self._compare(loader, tail, epoch, head.batches)
        if self.cover is not None:
            yield from map(self.cover.note, head)
        else:
            yield from head

    def _ahead(self, loader: Any) -> int:
        """Return how many batches tell enough: those of a walked shuffle, and rows, more than one of them."""
        shard = self.shard
        if not self.kept and (shard is None or not self.shuffles or shard.reading() is not None):
            return 1
        size = getattr(loader._batches, "batch_size", None) or loader.batch_size or 4
        if shard is not None:
            size = shard.round_size or size
        # Two from each worker process, which have read as many ahead by themselves.
        turns = 2 * loader.num_workers if self.kept and loader.num_workers <= _MOST_AHEAD else 2
        return max(turns, 2, min(-(-_ENOUGH_ROWS // int(size)), _MOST_AHEAD))

    def _compare(self, loader: Any, tail: Tail, epoch: int, batches: list[Any]) -> None:
        pending, self.pending = self.pending, None
        seen = self._look(loader, tail, epoch, batches)
        found: list[tuple[Seen, coverage.Record | None]] = self.group.all_gather_object((seen, pending))
        if self.probe is not None:
            if loader.num_workers:
                loader.__dict__["worker_init_fn"] = self.probe.init
            self.probe = None
        if not self.whole_epochs:
            self.left = self.left - 1 if any(item.shuffles for item, _ in found) else 0
        doubt = verdict.judge([item for item, _ in found], self.group.rank, self._name(loader))
        if doubt is not None:
            self._confirm(doubt, loader)
        if self.cover is not None and pending is not None:
            self.cover.judge([record for _, record in found], self.group.rank)

    def _look(self, loader: Any, tail: Tail, epoch: int, batches: list[Any]) -> Seen:
        """Collect what this rank has to say about the iteration."""
        seen = Seen(shuffles=self.shuffles, epoch=epoch)
        if self.kept:
            carries = loader._plan.watch_ends
            found = [rows_of(batch[0] if carries else batch) for batch in batches]
            seen.rows = [row for rows in found for row in rows]
            if isinstance(loader.dataset, IterableDataset):
                seen.workers = verdict.repeating_workers(found, loader.num_workers)
            order = verdict.Order.of_rows(seen.rows)
        elif self.head is not None:
            seen.head = self.head.found()
            order = verdict.Order(seen.head[:2], self.head.distinct(), None)
        else:
            seen.order = tail.first
            seen.walked = tail.walked
            if self.probe is not None:
                if not loader.num_workers:
                    self.probe.read(loader.dataset)
                seen.probe, seen.place = self.probe.found(), self.probe.place
            order = verdict.Order.of_indices(tail.first, verdict.length_of(loader.dataset))
        before, self.before = self.before, (epoch, order)
        seen.lost = self.shuffles and order.lost(before[1] if before and before[0] != epoch else None)
        return seen

    def _confirm(self, doubt: AuditError, loader: Any) -> None:
        """Raise ``doubt``; values of a stream that are not even the same twice on one rank prove nothing."""
        if not verdict.needs_proof(doubt):
            raise doubt
        if all(self.group.all_gather_object(self.head is not None and self.head.repeats(loader.dataset))):
            raise doubt

    def _name(self, loader: Any) -> str:
        if isinstance(loader.dataset, IterableDataset):
            return type(getattr(loader.dataset, "unsharded", loader.dataset)).__name__
        batches = loader._batches
        inner = batches.batch_sampler if isinstance(batches, BatchSamplerShard) else batches
        sampler = loader.get_sampler()
        return type(inner if sampler is None else sampler).__name__

    def finish(self, *, partial: bool) -> None:
        """End an iteration that went to its end; ``partial``: it did not start at the beginning."""
        if self.cover is None or partial:
            return
        record = self.cover.record()
        if not self.together:
            self.pending = record
        else:
            self.cover.judge(self.group.all_gather_object(record), self.group.rank)


class _Ahead:
    """Read the first batches at once, then the others one by one; what fails, fails in its turn."""

    def __init__(self, iterator: Iterator[Any], count: int) -> None:
        self.iterator = iterator
        self.batches: list[Any] = []
        self.failure: Exception | None = None
        try:
            for batch in iterator:
                self.batches.append(batch)
                if len(self.batches) == count:
                    break
        except Exception as error:  # noqa: BLE001 - raised again in its turn, after the ranks have met
            self.failure = error

    def __iter__(self) -> Iterator[Any]:
        yield from self.batches
        self.batches = []
        if self.failure is not None:
            raise self.failure
        yield from self.iterator


def _place(dataset: Any) -> int | None:
    """Return the place of a data set that ranks may read to compare, or None."""
    if not hasattr(type(dataset), "__getitem__") or isinstance(dataset, (dict, str)):
        return None
    # A generator of its own, torch's, NumPy's or Python's, would be moved on by reading.
    if any(type(value).__name__ in _GENERATORS for value in getattr(dataset, "__dict__", {}).values()):
        return None
    length = verdict.length_of(dataset)
    return length // 2 if length else None


__all__ = ["AUDIT", "Audit", "make_audit", "shuffles"]
