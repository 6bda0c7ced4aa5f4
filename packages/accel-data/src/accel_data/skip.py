"""Resuming an epoch after its first batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from accel_core.errors import PrepareError

from .base import PreparedLoader
from .batches import BatchSamplerShard
from .plan import LoaderPlan
from .shard import DataLoaderShard


def skip_first_batches(dataloader: DataLoader[Any], num_batches: int = 0) -> PreparedLoader:
    """Return a loader like ``dataloader`` whose first iteration starts after ``num_batches`` batches.

    Batches are those of one rank. The loader and its source share one epoch: after the first iteration
    both go on with the next epoch, in full. Over samplers that can be indexed the start is reached at
    once; custom samplers are walked without loading data; streams and dispatched data are read and dropped.
    On a loader with a resumed position, batches count from the start of its epoch, and replace the position.

    Raises:
        PrepareError: a negative number, or something that is no torch loader.
    """
    if num_batches < 0:
        raise PrepareError(
            f"num_batches={num_batches} is negative",
            where="skip_first_batches",
            fix="pass the number of batches that were trained on already",
        )
    if isinstance(dataloader, PreparedLoader):
        plan = replace(dataloader._plan, skip=dataloader._plan.skip + num_batches, anew=True)
        cls: Any = type(dataloader)
    elif isinstance(dataloader, DataLoader):
        plan, cls = LoaderPlan(skip=num_batches), DataLoaderShard
    else:
        raise PrepareError(
            f"a {type(dataloader).__name__} is not a torch.utils.data.DataLoader",
            where="skip_first_batches",
            fix="pass the loader itself, not its iterator",
        )
    name = "sampler" if dataloader.batch_sampler is None else "batch_sampler"
    batches = getattr(dataloader, name)
    replaced = {}
    indexed = not isinstance(dataloader.dataset, IterableDataset) and issubclass(cls, DataLoaderShard)
    if indexed and not isinstance(batches, BatchSamplerShard):
        replaced[name] = BatchSamplerShard(batches)
    return cls.rebuild(dataloader, plan, **replaced)  # type: ignore[no-any-return]


__all__ = ["skip_first_batches"]
