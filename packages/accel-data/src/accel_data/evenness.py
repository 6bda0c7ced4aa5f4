"""Change ``even_batches`` of a prepared loader for a while."""

from __future__ import annotations

from typing import Any

from torch.utils.data import IterableDataset

from accel_core.errors import PrepareError

from .base import PreparedLoader
from .batches import BatchSamplerShard


def can_be_uneven(loader: Any) -> bool:
    """Tell whether ``even_batches`` of ``loader`` can be changed: map-style data that ranks divide here."""
    if not isinstance(loader, PreparedLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    return isinstance(loader._batches, BatchSamplerShard)


def set_even_batches(loader: PreparedLoader, value: bool) -> bool:
    """Set ``even_batches`` for the iterations to come; return what it was.

    Raises PrepareError when batches without a size are to be completed.
    """
    batches: BatchSamplerShard = loader._batches
    before = batches.even_batches
    if value and not before and batches.batch_size is None and not batches.split_batches:
        raise PrepareError(
            "Batches without a batch_size cannot be completed to equal ones",
            where=f"even_batches=True, {type(batches.batch_sampler).__name__}",
            fix="give the batch sampler a batch_size, or leave even_batches out",
        )
    batches.even_batches = value
    return before


__all__ = ["can_be_uneven", "set_even_batches"]
