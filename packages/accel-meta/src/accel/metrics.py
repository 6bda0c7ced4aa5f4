"""Remove padding from gathered values, by what the running loader knows of the batch in hand."""

from __future__ import annotations

from typing import Any

import torch
from accel_core.errors import DataError
from accel_core.nested import leaves, map_nested
from accel_core.window import LoaderCursor


def all_tensors(data: Any) -> bool:
    """Tell whether ``data`` holds tensors and nothing else, at least one."""
    found = [isinstance(leaf, torch.Tensor) for _, leaf in leaves(data)]
    return bool(found) and all(found)


def trim(gathered: Any, cursor: LoaderCursor | None) -> Any:
    """Return ``gathered`` (rank-major rows of one global batch) without the rows of padding samples.

    A value with k rows per sample keeps k rows per real sample. Raises DataError when rows cannot be
    told apart, because returning them untrimmed would count samples twice.
    """
    if cursor is None or cursor.valid is None or cursor.world_batch is None or cursor.valid == cursor.world_batch:
        return gathered
    valid, total = cursor.valid, cursor.world_batch
    for path, leaf in leaves(gathered):
        if isinstance(leaf, torch.Tensor) and (leaf.ndim == 0 or leaf.shape[0] % total):
            rows = 1 if leaf.ndim == 0 else leaf.shape[0]
            raise DataError(
                f"gather_for_metrics got {rows} rows for a batch of {total} samples, {total - valid} of which are"
                " padding, and cannot tell which rows to remove",
                where=f"input_data{path}, shape {tuple(leaf.shape)}",
                fix="give it one row (or a fixed number of rows) per sample; use gather() for values per rank",
            )

    def keep(leaf: Any) -> Any:
        return leaf[: valid * (leaf.shape[0] // total)] if isinstance(leaf, torch.Tensor) else leaf

    return map_nested(keep, gathered)


def trim_objects(gathered: list[Any], cursor: LoaderCursor | None) -> list[Any]:
    """Return the objects of a global batch without those of padding samples, as `trim` does for tensors."""
    if cursor is None or cursor.valid is None or cursor.world_batch is None or cursor.valid == cursor.world_batch:
        return gathered
    if len(gathered) % cursor.world_batch:
        raise DataError(
            f"gather_for_metrics got {len(gathered)} objects for a batch of {cursor.world_batch} samples,"
            f" {cursor.world_batch - cursor.valid} of which are padding, and cannot tell which to remove",
            where="input_data with use_gather_object=True",
            fix="give it a list with one object (or a fixed number of objects) per sample",
        )
    return gathered[: cursor.valid * (len(gathered) // cursor.world_batch)]
