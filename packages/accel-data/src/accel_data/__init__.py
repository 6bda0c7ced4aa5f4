"""Sharded, dispatched and exactly counted data loading for PyTorch."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

from .__about__ import __version__ as __version__

if TYPE_CHECKING:
    from .batches import BatchSamplerShard as BatchSamplerShard
    from .dispatch import DataLoaderDispatcher as DataLoaderDispatcher
    from .order import epoch_seed as epoch_seed
    from .prepare import prepare_data_loader as prepare_data_loader
    from .samplers import SeedableRandomSampler as SeedableRandomSampler
    from .shard import DataLoaderShard as DataLoaderShard
    from .skip import skip_first_batches as skip_first_batches
    from .stream import IterableDatasetShard as IterableDatasetShard

_NAMES = {
    "BatchSamplerShard": ".batches",
    "DataLoaderDispatcher": ".dispatch",
    "DataLoaderShard": ".shard",
    "IterableDatasetShard": ".stream",
    "SeedableRandomSampler": ".samplers",
    "epoch_seed": ".order",
    "prepare_data_loader": ".prepare",
    "skip_first_batches": ".skip",
}

__all__ = [
    "BatchSamplerShard",
    "DataLoaderDispatcher",
    "DataLoaderShard",
    "IterableDatasetShard",
    "SeedableRandomSampler",
    "epoch_seed",
    "prepare_data_loader",
    "skip_first_batches",
]

__getattr__, __dir__ = lazy_door(__name__, _NAMES)
