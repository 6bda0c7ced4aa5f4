"""Whether a model has all its tensors: before a load in its modules, after it there or with its hooks."""

from __future__ import annotations

from torch import nn

from accel_core.errors import CheckpointError, StateError

from ..guard import offloaded_names
from ..tensors import all_tensors


def in_one_piece(model: nn.Module) -> None:
    """Refuse a model whose hooks would put other values over those that are loaded."""
    name = next(offloaded_names(model), None)
    if name is not None:
        raise StateError(
            f"Nothing can be loaded into a model that is offloaded already, with {name!r} for one",
            where=type(model).__name__,
            fix="load into a new skeleton, or bring it back with remove_hook_from_submodules(model) first",
        )


def nothing_lost(model: nn.Module) -> None:
    """Raise CheckpointError for a tensor that has no data, and no hook that brings it.

    Some operations of torch take one for numbers, and compute something.
    """
    without = [name for name, tensor in all_tensors(model) if tensor.device.type == "meta"]
    if not without:
        return
    brought = set(offloaded_names(model))
    lost = [name for name in without if name not in brought]
    if lost:
        raise CheckpointError(
            f"{len(lost)} tensors of the model would have no data when it runs: {', '.join(lost[:5])}",
            where=type(model).__name__,
            fix="place them on a device, or name the class of the module that uses them in "
            "preload_module_classes",
        )


__all__ = ["in_one_piece", "nothing_lost"]
