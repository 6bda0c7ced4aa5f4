"""The documented place of the loaders; here they know the process they run in."""

from __future__ import annotations

from functools import wraps
from typing import Any

import accel_data
from accel_data import (
    BatchSamplerShard,
    DataLoaderDispatcher,
    DataLoaderShard,
    IterableDatasetShard,
    SeedableRandomSampler,
    skip_first_batches,
)
from accel_state import GradientState, process, random


@wraps(accel_data.prepare_data_loader)
def prepare_data_loader(dataloader: Any, *args: Any, **kwargs: Any) -> Any:
    """Return ``dataloader`` giving this rank its share, as `accel_data.prepare_data_loader` does.

    The ranks, the window and the random number generators are those of this process.
    """
    kwargs.setdefault("collectives", process.start().collectives)
    kwargs.setdefault("window", GradientState().window)
    kwargs.setdefault("synchronize", random.synchronize_rng_states)
    return accel_data.prepare_data_loader(dataloader, *args, **kwargs)


__all__ = [
    "BatchSamplerShard",
    "DataLoaderDispatcher",
    "DataLoaderShard",
    "IterableDatasetShard",
    "SeedableRandomSampler",
    "prepare_data_loader",
    "skip_first_batches",
]
