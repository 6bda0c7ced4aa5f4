"""What ``prepare`` refuses, and why."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, DistributedSampler

from accel_core.errors import AlreadyShardedError, PrepareError

from .base import PreparedLoader
from .batches import BatchSamplerShard
from .samplers import samplers_of
from .stream import IterableDatasetShard


def check_loader(loader: Any, num_processes: int) -> None:
    """Refuse what is no torch loader, what was prepared before, and what is sharded already."""
    if isinstance(loader, PreparedLoader):
        raise AlreadyShardedError(
            "this loader has been prepared already",
            where=type(loader).__name__,
            fix="prepare the torch DataLoader it was made from, once",
        )
    if not isinstance(loader, DataLoader):
        raise PrepareError(
            f"a {type(loader).__name__} is not a torch.utils.data.DataLoader",
            where="prepare_data_loader",
            fix="wrap the data in a DataLoader, or leave it out of prepare",
        )
    if num_processes == 1:
        return
    for sampler in samplers_of(loader):
        ours = isinstance(sampler, BatchSamplerShard)
        if isinstance(sampler, DistributedSampler) or ours or _has_ranks(sampler):
            raise AlreadyShardedError(
                f"its {type(sampler).__name__} already gives each rank its own part; sharding it again "
                f"would leave out all but 1/{num_processes} of the data",
                where="prepare_data_loader",
                fix="build the loader with shuffle=True or a plain sampler and let prepare shard it, or do "
                "not prepare this loader and move its batches to the device yourself",
            )
    if isinstance(loader.dataset, IterableDatasetShard):
        raise AlreadyShardedError(
            "its dataset is an IterableDatasetShard, which already gives each rank its own part",
            where="prepare_data_loader",
            fix="build the loader on the dataset itself and let prepare shard it",
        )


def _has_ranks(sampler: Any) -> bool:
    return hasattr(sampler, "num_replicas") and hasattr(sampler, "rank")


def check_in_order(loader: DataLoader[Any], *, pads: bool) -> None:
    """Refuse batches out of order where the padded one must be the last."""
    if pads and loader.num_workers > 0 and not getattr(loader, "in_order", True):
        raise PrepareError(
            "with in_order=False the completed last batch can arrive anywhere, so padding could not be told "
            "from data",
            where="prepare_data_loader(even_batches=True)",
            fix="use in_order=True, drop_last=True or even_batches=False",
        )


def check_iteration(loader: DataLoader[Any]) -> None:
    """Refuse a loader class that iterates in its own way where batches carry their validity through it."""
    iterate: Any = type(loader).__iter__
    if not iterate.__module__.startswith(("torch.", "torchdata.")):
        raise PrepareError(
            f"{type(loader).__name__} has an __iter__ of its own, which would meet the batches of a stream "
            "together with the count of their real samples",
            where="prepare_data_loader on several processes",
            fix="do what it does in collate_fn or in the dataset, or use dispatch_batches=True or "
            "even_batches=False",
        )


def mesh_place(mesh: Any) -> tuple[int, int]:
    """Return ``(ranks, rank)`` of the data-parallel part of a device mesh: its dimensions named ``dp*``.

    Raises:
        PrepareError: the dimensions have no names, none is named ``dp*``, or another one is wider than 1.
    """
    names = tuple(mesh.mesh_dim_names or ())
    sizes = tuple(mesh.mesh.shape)
    parallel = [index for index, name in enumerate(names) if name.startswith("dp")]
    others = [
        f"{name}={size}"
        for name, size in zip(names, sizes, strict=False)
        if not name.startswith("dp") and size > 1
    ]
    if not parallel or others:
        reason = (
            f"it has no dimension named dp* (its names: {names or 'none'})"
            if not parallel
            else f"sharding data beside {', '.join(others)} has not been shown to work yet"
        )
        raise PrepareError(
            f"the data cannot be sharded over this device mesh: {reason}",
            where="prepare_data_loader(torch_device_mesh=...)",
            fix="name the data-parallel dimensions dp, dp_replicate or dp_shard, or pass num_processes and "
            "process_index",
        )
    coordinate = mesh.get_coordinate()
    ranks, rank = 1, 0
    for index in parallel:
        ranks *= sizes[index]
        rank = rank * sizes[index] + coordinate[index]
    return ranks, rank


__all__ = ["check_in_order", "check_iteration", "check_loader", "mesh_place"]
