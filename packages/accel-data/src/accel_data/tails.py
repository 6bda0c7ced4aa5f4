"""What is known ahead about the last batch of loaders that are not divided here."""

from __future__ import annotations

from typing import Any

from torch.utils.data import BatchSampler, DistributedSampler, IterableDataset

from accel_core.cursor import LoaderCursor

from .batches import BatchSamplerShard
from .order import reading_of
from .tail import Tail


def _plain(loader: Any) -> Any:
    """Return the plain torch batch sampler of a map-style ``loader``, or None."""
    batches = loader._batches
    if isinstance(batches, BatchSamplerShard) and batches.num_processes == 1:
        batches = batches.batch_sampler
    indexed = not isinstance(loader.dataset, IterableDataset) and getattr(loader, "in_order", True)
    return batches if indexed and type(batches) is BatchSampler else None


def sample_count(loader: Any) -> int | None:
    """Return how many samples the sampler of ``loader`` gives; None where only walking it tells."""
    batches = _plain(loader)
    if batches is None:
        return None
    known = type(batches.sampler) is DistributedSampler or reading_of(batches.sampler) is not None
    return len(batches.sampler) if known else None


def last_size(loader: Any, tail: Tail) -> int | None:
    """Return the samples of the last batch of ``loader``; None when not known. ``tail``: of its walk."""
    batches = _plain(loader)
    if batches is None:
        return None
    if tail.parts is not None:
        return tail.parts[0]
    rest = 0 if batches.drop_last else len(batches.sampler) % batches.batch_size
    return int(rest or batches.batch_size)


def own_tail(loader: Any, cursor: LoaderCursor, tail: Tail) -> None:
    """Tell ``cursor`` of the last batch, where the ranks' own samplers give equally many samples.

    torch's ``DistributedSampler`` repeats samples so that they do: at most one on a rank, its last.
    """
    size, world = last_size(loader, tail), loader._plan.collectives.world_size
    cursor.rows, cursor.world_batch = size, None
    if size is None or sample_count(loader) is None:
        return
    cursor.world_batch = size * world
    sampler = _plain(loader).sampler
    if type(sampler) is not DistributedSampler or sampler.drop_last:
        return
    dataset: Any = sampler.dataset
    count = sampler.total_size - len(dataset)
    reached = not _plain(loader).drop_last or not len(sampler) % _plain(loader).batch_size
    if count > 0 and reached:
        cursor.valid = cursor.world_batch - count
        cursor.own = size - 1 if sampler.rank >= world - count else None


__all__ = ["last_size", "own_tail", "sample_count"]
