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
    counts = _padded(cursor)
    if counts is None:
        return gathered
    valid, total = counts
    for path, leaf in leaves(gathered):
        if leaf.ndim == 0 or leaf.shape[0] % total:
            rows = 1 if leaf.ndim == 0 else leaf.shape[0]
            raise _cannot_tell(f"{rows} rows", counts, f"input_data{path}, shape {tuple(leaf.shape)}")

    def keep(leaf: torch.Tensor) -> torch.Tensor:
        return leaf[: valid * (leaf.shape[0] // total)]

    return map_nested(keep, gathered)


def trim_objects(gathered: list[Any], cursor: LoaderCursor | None) -> list[Any]:
    """Return the objects of a global batch without those of padding samples, as `trim` does for tensors."""
    counts = _padded(cursor)
    if counts is None:
        return gathered
    valid, total = counts
    if len(gathered) % total:
        raise _cannot_tell(f"{len(gathered)} objects", counts, "input_data, gathered as objects")
    return gathered[: valid * (len(gathered) // total)]


def _padded(cursor: LoaderCursor | None) -> tuple[int, int] | None:
    """Return the real and all samples of the batch in hand, or None when it has no padding."""
    if cursor is None or cursor.valid is None or cursor.world_batch is None:
        return None
    return None if cursor.valid == cursor.world_batch else (cursor.valid, cursor.world_batch)


def _cannot_tell(got: str, counts: tuple[int, int], where: str) -> DataError:
    valid, total = counts
    return DataError(
        f"gather_for_metrics got {got} for a batch of {total} samples, {total - valid} of which are padding,"
        " and cannot tell which to remove",
        where=where,
        fix="give it one row or object per sample (or a fixed number); use gather() for values per rank",
    )
