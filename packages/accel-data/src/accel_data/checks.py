"""What ``prepare`` refuses, and why."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from accel_core.errors import AlreadyShardedError, PrepareError

from .base import PreparedLoader


def check_loader(loader: Any) -> None:
    """Refuse what is no torch loader, and what was prepared before."""
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


def check_in_order(loader: DataLoader[Any], *, pads: bool) -> None:
    """Refuse batches out of order where the padded one must be the last."""
    if pads and loader.num_workers > 0 and not getattr(loader, "in_order", True):
        raise PrepareError(
            "with in_order=False the completed last batch can arrive anywhere, so padding could not be told "
            "from data",
            where="prepare_data_loader(even_batches=True)",
            fix="use in_order=True, drop_last=True or even_batches=False",
        )


def check_kept(*, dispatch_batches: bool | None, split_batches: bool) -> None:
    """Refuse what cannot be asked of a loader that already reads one rank's part."""
    if not dispatch_batches and not split_batches:
        return
    word = "dispatch_batches" if dispatch_batches else "split_batches"
    why = "rank 0 would send out its own part only" if dispatch_batches else "its batches are one rank's"
    raise PrepareError(
        f"{word}=True needs the whole data, but each rank's loader reads its own part already: {why}",
        where="prepare_data_loader",
        fix=f"use {word}=False, or give every rank the whole data and let accel divide it",
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


__all__ = ["check_in_order", "check_iteration", "check_kept", "check_loader", "mesh_place"]
