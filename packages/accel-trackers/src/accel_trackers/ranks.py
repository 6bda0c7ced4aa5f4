"""Which process may track."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

Method = TypeVar("Method", bound=Callable[..., Any])


def is_main_process() -> bool:
    """Tell whether this process is rank 0 of the run.

    The rank is the one that accel's loggers show: that of the process state when there is one,
    else what the environment says (torchrun, SLURM, MPI). Raises TopologyError when the
    environment contradicts itself: a guess would make every rank track, or none.
    """
    from accel_core.logging import RankInfo, rank_info

    info = rank_info()
    if info == RankInfo():
        # Also what loggers take when the environment cannot be read; here that must not pass.
        from accel_core.topology import Topology

        Topology.detect()
    return info.rank == 0


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


__all__ = ["is_main_process", "on_main_process"]
