"""Do all ranks mean the same? Asked before an exchange, so that a mismatch raises on all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from accel_state import process
from accel_state.calls import Call, DistributedOperationException

if TYPE_CHECKING:
    from accel_core.protocols import Collectives


@runtime_checkable
class Comparing(Protocol):
    """Collectives that compare what the ranks are about to do."""

    def exchange(
        self, call: Call, value: Callable[[], bytes] | None
    ) -> tuple[Collectives, list[memoryview] | None]:
        """Compare ``call``; return the group to run it on, and the values of all ranks if they are small."""
        ...

    def meet(self, call: Call) -> None:
        """Return once every rank has come with the same ``call``."""


def of_process(collectives: Collectives | None) -> Collectives:
    """Return ``collectives``, or those of this process, setting it up when it was not."""
    if collectives is not None:
        return collectives
    return (process.current() or process.start()).collectives


def agree(
    call: Call, collectives: Collectives, value: Callable[[], bytes] | None = None
) -> tuple[Collectives, list[memoryview] | None]:
    """Compare ``call`` over the ranks; return the group to run it on.

    The second part is the bytes that ``value`` gives on each rank, when they are few enough to travel
    with the question; else None. Raises DistributedOperationException on every rank, with each one's
    operation, shapes and line, when the calls differ: always where the exchange goes through gloo, and
    everywhere in debug mode.
    """
    if not isinstance(collectives, Comparing):
        return collectives, None
    return collectives.exchange(call, value)


__all__ = ["Comparing", "DistributedOperationException", "agree", "of_process"]
