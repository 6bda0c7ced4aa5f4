"""Gather and broadcast Python objects over the ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accel_core.errors import DataError
from accel_state.frames import user_line

from .agreement import DistributedOperationException, agree, of_process

if TYPE_CHECKING:
    from accel_core.protocols import Collectives


def gather_object(object: Any, *, collectives: Collectives | None = None) -> list[Any]:  # noqa: A002 - documented name
    """Return the objects of all ranks in one list, in rank order, on every rank.

    A list or tuple contributes its items, as many as it has; anything else contributes itself.
    Objects must be picklable.
    """
    group = of_process(collectives)
    # Objects may differ from rank to rank; only the operation is compared.
    agree("gather_object", None, group)
    found = group.all_gather_object(object)
    if all(isinstance(value, (list, tuple)) for value in found):
        return [item for value in found for item in value]
    return found


def broadcast_object_list(
    object_list: list[Any], from_process: int = 0, *, collectives: Collectives | None = None
) -> list[Any]:
    """Replace the items of ``object_list`` by rank ``from_process``'s and return the list.

    All ranks pass lists of the same length; raises DistributedOperationException otherwise.
    """
    if not isinstance(object_list, list):
        raise DataError(
            f"broadcast_object_list changes a list in place, got {type(object_list).__name__}",
            fix="pass a list, with None for each object to receive",
        )
    group = of_process(collectives)
    agree("broadcast_object_list", [None] * len(object_list), group)
    received = group.broadcast_object(object_list, from_process)
    if len(received) != len(object_list):
        raise DistributedOperationException(
            f"broadcast_object_list: rank {from_process} sent {len(received)} objects, "
            f"this rank has places for {len(object_list)}",
            where=f"rank {group.rank} of {group.world_size}, {user_line()}",
            fix=f"pass a list of {len(received)} places on every rank",
        )
    object_list[:] = received
    return object_list


__all__ = ["broadcast_object_list", "gather_object"]
