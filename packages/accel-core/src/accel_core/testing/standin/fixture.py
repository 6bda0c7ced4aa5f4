"""The fixture ``standin``: run functions in processes that have the stand-in device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accel_core.testing.pool import WorkerPool

from .building import build, obstacle
from .loading import Loaded


class StandIn:
    """Workers whose torch has the device ``standin``."""

    def __init__(self, compiled: Path, pool: WorkerPool) -> None:
        self._compiled = compiled
        self._pool = pool

    def run(self, world: int, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
        """Do as `WorkerPool.run`, where the device is there."""
        return self._pool.run(world, Loaded(function, self._compiled), *args, **options)

    def failures(
        self, world: int, function: Callable[..., Any], *args: Any, **options: Any
    ) -> list[BaseException | None]:
        """Do as `WorkerPool.failures`, where the device is there."""
        return self._pool.failures(world, Loaded(function, self._compiled), *args, **options)


_STANDIN = pytest.StashKey[StandIn]()


@pytest.fixture(scope="session")
def standin(pytestconfig: pytest.Config) -> StandIn:
    """Give workers with the stand-in device, not those of ``pool``: what is loaded stays loaded."""
    pytest.importorskip("torch")
    reason = obstacle()
    if reason:
        pytest.skip(reason)
    # Every module that imports this fixture has one of its own; starting the workers takes seconds.
    if _STANDIN not in pytestconfig.stash:
        pool = WorkerPool()
        pytestconfig.add_cleanup(pool.close)
        pytestconfig.stash[_STANDIN] = StandIn(build(), pool)
    return pytestconfig.stash[_STANDIN]


__all__ = ["StandIn", "standin"]
