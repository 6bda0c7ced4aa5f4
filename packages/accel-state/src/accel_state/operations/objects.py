"""Gather and broadcast Python objects over the ranks."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accel_core.errors import DataError
from accel_state.calls import Call
from accel_state.frames import user_line

from .agreement import DistributedOperationException, agree, of_process

if TYPE_CHECKING:
    from accel_core.protocols import Collectives


def gather_object(object: Any, *, collectives: Collectives | None = None) -> list[Any]:  # noqa: A002 - documented name
    """Return the objects of all ranks in one list, in rank order, on every rank.

    A list or tuple contributes its items, as many as it has; anything else contributes itself.
    Objects must be picklable; raises DataError for one that is not.
    """
    group = of_process(collectives)
    found = _everybodys(object, group)
    if all(isinstance(value, (list, tuple)) for value in found):
        return [item for value in found for item in value]
    return found


def _everybodys(value: Any, group: Collectives) -> list[Any]:
    if group.world_size == 1:
        return group.all_gather_object(value)
    sent = _pickled(value, "gather_object")
    # Objects may differ from rank to rank; only the operation is compared.
    values: Sequence[Any] | None
    group, values = agree(Call.of("gather_object", one_line=True), group, lambda: sent)
    if values is None:
        values = group.all_gather_object(sent)
    return [pickle.loads(each) for each in values]  # noqa: S301 - from our own ranks


def _pickled(value: Any, operation: str) -> bytes:
    """Return ``value`` pickled; a rank that cannot must raise before the others wait for it."""
    try:
        return pickle.dumps(value)
    except Exception as error:
        raise DataError(
            f"{operation} takes objects that can be pickled, not {type(value).__name__} ({error})",
            where=user_line(),
            fix="pass plain data: no lambdas, open files or generators",
        ) from error


def broadcast_object_list(
    object_list: list[Any], from_process: int = 0, *, collectives: Collectives | None = None
) -> list[Any]:
    """Replace the items of ``object_list`` by rank ``from_process``'s and return the list.

    All ranks pass lists of the same length; raises DistributedOperationException otherwise, and
    DataError for what is no list or cannot be pickled.
    """
    if not isinstance(object_list, list):
        raise DataError(
            f"broadcast_object_list changes a list in place, got {type(object_list).__name__}",
            fix="pass a list, with None for each object to receive",
        )
    group = of_process(collectives)
    received = _from_one(object_list, from_process, group)
    if len(received) != len(object_list):
        raise DistributedOperationException(
            f"broadcast_object_list: rank {from_process} sent {len(received)} objects, "
            f"this rank has places for {len(object_list)}",
            where=f"rank {group.rank} of {group.world_size}, {user_line()}",
            fix=f"pass a list of {len(received)} places on every rank",
        )
    object_list[:] = received
    return object_list


def _from_one(values: list[Any], source: int, group: Collectives) -> list[Any]:
    if group.world_size == 1 or not 0 <= source < group.world_size:
        return list(group.broadcast_object(values, source))
    # Only what is sent is pickled: places to receive may hold anything.
    sent = _pickled(values, "broadcast_object_list") if group.rank == source else b""
    call = Call.of(f"broadcast_object_list from rank {source}", [None] * len(values))
    group, found = agree(call, group, lambda: sent)
    bytes_sent = found[source] if found is not None else group.broadcast_object(sent, source)
    received: list[Any] = pickle.loads(bytes_sent)  # noqa: S301 - from our own ranks
    return received


__all__ = ["broadcast_object_list", "gather_object"]
