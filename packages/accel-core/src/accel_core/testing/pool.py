"""Run a function on 2 or 4 real processes in a fraction of a second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Self

from accel_core.errors import ConfigError, Fault

from .errors import RankFailure, RankStoppedError, RemoteError, WorkerDiedError, WorkerError
from .forkserver import ForkServer, WorkerHandle
from .ports import free_port
from .shipping import pack, unpack
from .worker import group_call

LOOK = 0.1
"""Seconds between looks at whether a silent worker still lives."""
CLEAN_PATIENCE = 10.0
"""Seconds that workers get to clean up after a call."""

Outcome = tuple[str, Any, str] | RankFailure


class WorkerPool:
    """Living worker processes with torch imported, which take one call after the other.

    The workers are forked from one server process that imports torch once; the first call waits for that
    (5 to 10 s on two shared cores). After it, measured there with torch 2.13, ``run`` takes 3 ms and
    ``run_in_group``, which starts gloo and takes it down again, 40 ms on 2 and 80 ms on 4 processes.

    Each call gets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and a MASTER_PORT of
    its own, the variables in ``env`` on top, and no process group. Of the calling process's environment
    the workers see what was there when the pool started, without launcher variables and settings of
    accel. After each call a worker destroys its process group, resets ``accel_state.process`` and
    restores environment, folder, paths, warning filters, root logger, generators (seeded with 0) and
    torch's process-wide settings; Python threads left running fail the call. Modules stay imported.

    Unlike processes of a real launch, workers share one hash seed: a test that depends on the order
    of a set needs a launch. Linux and macOS only.
    """

    def __init__(self, *, timeout: float = 60.0, grace: float = 3.0) -> None:
        self.timeout = timeout
        """Seconds that a call may take unless it says otherwise."""
        self.grace = grace
        """Seconds that the other ranks get to end once one has failed."""
        self.output: list[str] = []
        """What each rank of the latest call printed, standard output and error together."""
        self._server = ForkServer()
        self._workers: list[WorkerHandle] = []

    # -- calls -------------------------------------------------------------------------------

    def run(
        self,
        world: int,
        function: Callable[..., Any],
        *args: Any,
        timeout: float | None = None,
        env: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
    ) -> list[Any]:
        """Call ``function(*args)`` on ``world`` processes at once; return the results in rank order.

        ``function`` is anything that cloudpickle can send: functions of test modules, lambdas and
        closures too; arguments and results are copies. ``env`` is one mapping for all ranks or one
        per rank. Raises WorkerError when a rank raises, dies, hangs or leaves threads behind.
        """
        outcomes, timed_out = self._call(world, function, args, timeout, env)
        failures = {rank: item for rank, item in enumerate(outcomes) if isinstance(item, RankFailure)}
        if failures:
            ranks = ", ".join(map(str, failures))
            name = getattr(function, "__qualname__", repr(function))
            late = f" within {timeout or self.timeout:g} s" if timed_out else ""
            what = f"{name} failed on rank {ranks} of {world}{late}"
            raise WorkerError(what, failures, timed_out=timed_out)
        return outcomes

    def run_in_group(
        self,
        world: int,
        function: Callable[..., Any],
        *args: Any,
        backend: str = "gloo",
        timeout: float | None = None,
        env: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
    ) -> list[Any]:
        """Do as ``run`` with torch's default process group initialised before ``function`` is called."""
        return self.run(world, _InGroup(function, backend), *args, timeout=timeout, env=env)

    def failures(
        self,
        world: int,
        function: Callable[..., Any],
        *args: Any,
        timeout: float | None = None,
        env: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
    ) -> list[BaseException | None]:
        """Return the exception of each rank in rank order, None for a rank that returned: for bad input.

        A rank that died gives WorkerDiedError, one that hung and was stopped RankStoppedError.
        """
        outcomes, _ = self._call(world, function, args, timeout, env)
        return [outcome.exception if isinstance(outcome, RankFailure) else None for outcome in outcomes]

    def _call(
        self,
        world: int,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        timeout: float | None,
        env: Mapping[str, str] | Sequence[Mapping[str, str]] | None,
    ) -> tuple[list[Any], bool]:
        variables = _environments(world, env)
        # Packed first: what cannot be sent must not cost a start.
        payload = pack(function, args, self._server.installed)
        self._grow(world)
        workers = self._workers[:world]
        try:
            for worker, mapping in zip(workers, variables, strict=True):
                worker.send("call", payload, mapping, os.getcwd())  # noqa: PTH109 - sent as a string
            outcomes, timed_out = self._collect(workers, timeout or self.timeout)
            self._clean(workers, outcomes)
        except BaseException:
            # A timeout of the test runner or Ctrl-C: nobody knows what the workers do.
            self._stop(workers)
            raise
        finally:
            self._workers = [worker for worker in self._workers if worker.alive]
        return [_unpacked(*pair) for pair in zip(outcomes, workers, strict=True)], timed_out

    def _collect(self, workers: Sequence[WorkerHandle], timeout: float) -> tuple[list[Outcome], bool]:
        """Wait for every rank; when time is up, or one failed and the rest do not end, stop the rest."""
        outcomes: dict[int, Outcome] = {}
        limit = time.monotonic() + timeout
        timed_out = True
        pending = dict(enumerate(workers))
        while pending and time.monotonic() < limit:
            for rank, message in self._messages(pending, limit):
                del pending[rank]
                outcomes[rank] = message if message is not None else self._died(rank, workers[rank])
                failed = message is None or message[0] == "error"
                if failed and timed_out:
                    limit = min(limit, time.monotonic() + self.grace)
                    timed_out = False
        timed_out = timed_out and bool(pending)
        if pending:
            first = next((rank for rank, outcome in outcomes.items() if _failed(outcome)), None)
            why = f"after {timeout:g} s" if timed_out else f"{self.grace:g} s after rank {first} had failed"
            stacks = self._server.stacks(list(pending.values()))
            self._stop(list(pending.values()))
            for (rank, worker), stack in zip(pending.items(), stacks, strict=True):
                error = RankStoppedError(rank, why, stack)
                outcomes[rank] = RankFailure(error, f"{error}\n{stack}", worker.printed())
        return [outcomes[rank] for rank in range(len(workers))], timed_out

    def _messages(self, pending: Mapping[int, WorkerHandle], limit: float) -> list[tuple[int, Any]]:
        """Return ``(rank, message)`` of the ranks that have one now; None for a rank that has ended."""
        ranks = {worker.connection: rank for rank, worker in pending.items()}
        ready = wait(list(ranks), max(0.0, min(LOOK, limit - time.monotonic())))
        if not ready:
            # A process started by a worker may hold its connection open beyond the worker's death.
            ended = self._server.ended()
            return [
                (rank, worker.receive() if worker.connection.poll() else None)
                for rank, worker in pending.items()
                if worker.pid in ended
            ]
        return [(ranks[connection], pending[ranks[connection]].receive()) for connection in ready]  # type: ignore[index]

    def _died(self, rank: int, worker: WorkerHandle) -> RankFailure:
        # Its connection closed while it was ending: the status is there in a moment.
        limit = time.monotonic() + 1.0
        while worker.pid not in self._server.ended() and time.monotonic() < limit:
            time.sleep(0.01)
        status = self._server.ended().get(worker.pid)
        error = WorkerDiedError(rank, status)
        self._stop([worker])
        return RankFailure(error, str(error), worker.printed())

    def _clean(self, workers: Sequence[WorkerHandle], outcomes: list[Outcome]) -> None:
        """Let the workers clean up, now that nobody needs another's store; replace those that cannot."""
        self.output = [worker.printed() for worker in workers]
        pending = {rank: worker for rank, worker in enumerate(workers) if worker.alive}
        for worker in pending.values():
            worker.send("clean")
        limit = time.monotonic() + CLEAN_PATIENCE
        faults: dict[int, list[str]] = {}
        while pending and time.monotonic() < limit:
            for rank, message in self._messages(pending, limit):
                del pending[rank]
                faults[rank] = ["its process ended while it cleaned up"] if message is None else message[1]
        for rank, worker in pending.items():
            stack = self._server.stacks([worker])[0]
            faults[rank] = [f"cleaning up took more than {CLEAN_PATIENCE:g} s:\n{stack}"]
        for rank, found in faults.items():
            if not found:
                continue
            self._stop([workers[rank]])
            # After a failure the clean-up may fail too: the failure is what matters.
            if not any(_failed(outcome) for outcome in outcomes):
                error = RemoteError(f"Rank {rank} left something behind: " + "; ".join(found))
                outcomes[rank] = RankFailure(error, str(error), self.output[rank])

    # -- processes ---------------------------------------------------------------------------

    @property
    def pids(self) -> list[int]:
        """Return the process ids of the living workers, in rank order."""
        return [worker.pid for worker in self._workers]

    def warm_up(self) -> None:
        """Start the server without waiting for it, so that it imports torch while other tests run."""
        self._server.start()

    def _grow(self, world: int) -> None:
        self._server.start()
        ended = self._server.ended()
        gone = [worker for worker in self._workers if worker.pid in ended]
        self._stop(gone)
        self._workers = [worker for worker in self._workers if worker.alive]
        while len(self._workers) < world:
            self._workers.append(self._server.fork())

    def _stop(self, workers: Sequence[WorkerHandle]) -> None:
        self._server.stop(workers)

    def close(self) -> None:
        """End all processes."""
        self._workers = []
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _InGroup:
    """Call a function inside a process group; travels with the function."""

    def __init__(self, function: Callable[..., Any], backend: str) -> None:
        self.func = function
        self.backend = backend
        self.__qualname__ = getattr(function, "__qualname__", repr(function))

    def __call__(self, *args: Any) -> Any:
        return group_call(self.func, self.backend, args)


def _environments(
    world: int, env: Mapping[str, str] | Sequence[Mapping[str, str]] | None
) -> list[dict[str, str]]:
    if not isinstance(world, int) or isinstance(world, bool) or world < 1:
        raise ConfigError("WorkerPool", [Fault("world", world, "must be a whole number of at least 1")])
    given = [env] * world if env is None or isinstance(env, Mapping) else list(env)
    if len(given) != world:
        fault = Fault("env", f"{len(given)} mappings", f"must be one mapping or one per rank ({world})")
        raise ConfigError("WorkerPool", [fault])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    return [
        {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **(mapping or {})}
        for rank, mapping in enumerate(given)
    ]


def _failed(outcome: Outcome) -> bool:
    return isinstance(outcome, RankFailure) or outcome[0] == "error"


def _unpacked(outcome: Outcome, worker: WorkerHandle) -> Any:
    """Return the result, or the failure, that the worker sent."""
    if isinstance(outcome, RankFailure):
        return outcome
    kind, data, text = outcome
    if kind == "ok":
        return unpack(data)
    error = RemoteError(text.rstrip()) if data is None else unpack(data)
    return RankFailure(error, text, worker.output)


__all__ = ["WorkerPool"]
