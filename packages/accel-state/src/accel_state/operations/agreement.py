"""Do all ranks mean the same? Asked before an exchange in debug mode, so that a mismatch raises at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from accel_core.errors import CollectiveError
from accel_core.nested import leaves
from accel_state import process
from accel_state.frames import user_line

if TYPE_CHECKING:
    from accel_core.protocols import Collectives


class DistributedOperationException(CollectiveError):  # noqa: N818 - the documented name
    """Report ranks that brought different operations, structures, shapes or dtypes to one exchange."""


def of_process(collectives: Collectives | None) -> Collectives:
    """Return ``collectives``, or those of this process, setting it up when it was not."""
    if collectives is not None:
        return collectives
    return (process.current() or process.start()).collectives


def agree(operation: str, data: Any, collectives: Collectives, *, dim: int | None = None) -> None:
    """In debug mode, compare what every rank brought to ``operation`` and raise when it differs.

    ``dim``: sizes along this dimension may differ. Raises DistributedOperationException with each
    rank's operation, shapes and line.
    """
    state = process.current()
    if state is None or not state.debug or collectives.world_size == 1:
        return
    mine = (operation, tuple(_described(path, leaf, dim) for path, leaf in leaves(data)), user_line())
    everybody: list[Any] = collectives.all_gather_object(mine)
    if all(other[:2] == mine[:2] for other in everybody):
        return
    operations = {other[0] for other in everybody}
    reason = (
        "the ranks called different operations"
        if len(operations) > 1
        else "the ranks brought different input"
    )
    lines = "".join(
        f"\n  - Process {rank}: {_shown(other[1])}, {other[0]} at {other[2]}"
        for rank, other in enumerate(everybody)
    )
    raise DistributedOperationException(
        f"Cannot apply {operation}: {reason}.\nOperation: `{operation}`\nInput shapes:{lines}\n",
        per_rank=[_shown(other[1]) for other in everybody],
        where=f"rank {collectives.rank} of {collectives.world_size}, {mine[2]}",
        fix="give every rank the same structure and shapes; pad_across_processes makes one dimension equal",
    )


def _described(path: str, leaf: Any, dim: int | None) -> tuple[str, Any, str]:
    if not isinstance(leaf, torch.Tensor):
        return path, None, "object"
    shape: list[int | None] = list(leaf.shape)
    if dim is not None and -len(shape) <= dim < len(shape):
        shape[dim] = None
    return path, tuple(shape), str(leaf.dtype)


def _shown(described: tuple[tuple[str, Any, str], ...]) -> str:
    parts = [
        f"{path + ' ' if path else ''}{list(shape)} {dtype}"
        for path, shape, dtype in described
        if shape is not None
    ]
    others = len(described) - len(parts)
    return ", ".join([*parts, *([f"{others} object(s)"] if others else [])]) or "nothing"


__all__ = ["DistributedOperationException", "agree", "of_process"]
