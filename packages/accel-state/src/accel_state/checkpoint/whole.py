"""A save that ends in a commit or in nothing, for every kind of store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

from accel_core.errors import CollectiveError
from accel_core.protocols import CheckpointIO, StateSink


class Releasable(StateSink, Protocol):
    """A sink that can let go of its place."""

    def release(self) -> None:
        """Let go of it; the others are not told."""


_Sink = TypeVar("_Sink", bound=Releasable)


@contextmanager
def whole(store: CheckpointIO, sink: _Sink) -> Iterator[_Sink]:
    """Give ``sink``, and commit what was written into it, or give it up where a rank fails. Collective."""
    try:
        yield sink
    except Exception as error:
        # Where a rank is gone the others cannot be told, and what it was raised for is worth more.
        with suppress(CollectiveError):
            store.abort(sink, error)
        raise
    except BaseException:
        # An interrupt may have reached this rank alone: waiting for the others could be for ever.
        sink.release()
        raise
    store.commit(sink)


__all__ = ["Releasable", "whole"]
