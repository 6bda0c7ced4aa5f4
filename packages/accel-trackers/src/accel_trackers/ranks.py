"""Which process may track: asked of the environment, or of whoever knows better."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

Method = TypeVar("Method", bound=Callable[..., Any])

_source: Callable[[], bool] | None = None


def set_main_process_source(source: Callable[[], bool] | None) -> None:
    """Ask ``source`` from now on whether this process is the main one; None asks the environment again."""
    global _source
    _source = source


def is_main_process() -> bool:
    """Tell whether this process is rank 0 of the run.

    Raises TopologyError when the variables that say so contradict each other.
    """
    if _source is not None:
        return _source()
    from accel_core.topology import Topology

    return Topology.detect().rank == 0


def on_main_process(method: Method) -> Method:
    """Run a tracker's method on the main process only; elsewhere it returns None.

    A tracker whose ``main_process_only`` is false runs it on every process.
    """

    @wraps(method)
    def decorated(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "main_process_only", False) and not is_main_process():
            return None
        return method(self, *args, **kwargs)

    return cast("Method", decorated)


__all__ = ["is_main_process", "on_main_process", "set_main_process_source"]
