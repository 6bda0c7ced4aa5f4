"""One flag per ``Accelerator`` that any rank may raise and that all ranks see together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accel_state.calls import Call
from accel_state.operations.agreement import agree

if TYPE_CHECKING:
    from accel_core.protocols import Collectives


def anywhere(flag: bool, group: Collectives, operation: str) -> bool:
    """Return whether ``flag`` is true on any rank. Collective.

    Raises DistributedOperationException on all ranks when some make another call instead, CollectiveError
    when a rank does not come in time.
    """
    if group.world_size == 1:
        return flag
    # The flag travels with the question whether all ranks mean the same; only without gloo it goes alone.
    group, flags = agree(Call.of(operation), group, lambda: bytes([flag]))
    if flags is None:
        return any(group.vote(int(flag))())
    return any(value[0] for value in flags)


__all__ = ["anywhere"]
