"""The pool's side of the fork server: start it, fork workers, ask how they ended, end them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from accel_core.errors import AccelError, CapabilityError

from .owned import disown, own
from .server import BOOT, request

PRELOAD = (
    "numpy",
    "torch",
    "torch.distributed",
    "torch.nn.parallel",
    "torch.optim",
    "torch.utils.data",
    # Imported by torch itself in the first step of an optimizer; takes a second.
    "torch._dynamo",
    "cloudpickle",
    "pytest",
    "accel_core",
    "accel_core.protocols",
    "accel_core.testing.worker",
    "accel_state",
    "accel_data",
    "accel_parallel",
    "accel_precision",
    "accel_bigmodel",
    "accel_trackers",
    "accel_cli",
    "accel",
)
"""What workers find imported; what is not installed is left out. Our own doors are lazy and cost little."""
FOREIGN = re.compile(
    r"(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_\w+|NODE_RANK|NNODES"
    r"|MASTER_ADDR|MASTER_PORT|(TORCHELASTIC|SLURM|OMPI|PMI|PMIX|MPI|MV2|ACCELERATE|FSDP|ACCEL)_\w+|PYTEST_\w+)"
)
"""Variables of the calling process that would decide a test's outcome."""
STACK_PATIENCE = 2.0
"""Seconds to wait for a worker's stack."""


@dataclass(eq=False)
class WorkerHandle:
    """One worker as the pool sees it."""

    pid: int
    connection: Connection
    log: Path
    stacks: Path
    alive: bool = True
    output: str = field(default="", repr=False)
    """What it printed in its latest call."""

    def send(self, *message: Any) -> None:
        """Send a message; a worker that has ended will be found out when its answer is awaited."""
        try:
            self.connection.send(message)
        except OSError:
            pass

    def receive(self) -> Any:
        """Return its message, or None when its connection is closed."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def printed(self) -> str:
        """Read what it printed in this call."""
        if self.log.exists():
            self.output = self.log.read_text(encoding="utf-8", errors="replace")
        return self.output


class ForkServer:
    """Own the server process and everything that it forks."""

    def __init__(self) -> None:
        self.installed = frozenset(
            {name for name in {item.partition(".")[0] for item in PRELOAD} if importlib.util.find_spec(name)}
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._socket: socket.socket | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._preloading = False
        self._number = 0

    def start(self) -> None:
        """Start the process and let it import; do nothing when it lives."""
        if self._process is not None:
            return
        if not hasattr(os, "fork") or not hasattr(socket, "send_fds"):
            raise CapabilityError("The worker pool needs fork and Unix sockets", fix="use Linux or macOS")
        folder = tempfile.TemporaryDirectory(prefix="accel-pool-")
        ours, theirs = socket.socketpair()
        path = json.dumps([entry or os.getcwd() for entry in sys.path])  # noqa: PTH109 - entries are strings
        with theirs, (Path(folder.name) / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOT, str(theirs.fileno()), path],
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._folder = folder
        self._socket = ours
        # Both use one descriptor: messages go through the connection, descriptors through the socket.
        self._connection = Connection(ours.fileno())
        own(ours.fileno())
        self._connection.send(("preload", PRELOAD))
        self._preloading = True

    def _ask(self, name: str, *arguments: Any) -> Any:
        assert self._connection is not None, "start() comes first"
        try:
            if self._preloading:
                broken = self._connection.recv()
                self._preloading = False
                if broken:
                    raise AccelError("Workers cannot import what they need:\n" + "\n".join(broken))
            return request(self._connection, name, *arguments)
        except (EOFError, OSError) as error:
            raise AccelError(f"The pool's fork server has ended; it printed:\n{self._log()}") from error

    def _log(self) -> str:
        assert self._folder is not None
        return (Path(self._folder.name) / "server.log").read_text(encoding="utf-8", errors="replace")

    def fork(self) -> WorkerHandle:
        """Fork one worker."""
        assert self._folder is not None
        assert self._connection is not None
        assert self._socket is not None
        self._number += 1
        log, stacks = (Path(self._folder.name) / f"{self._number}.{kind}" for kind in ("log", "stacks"))
        self.ended()
        ours, theirs = socket.socketpair()
        with theirs:
            self._connection.send(("fork", str(log), str(stacks)))
            socket.send_fds(self._socket, [b"w"], [theirs.fileno()])
            pid = self._connection.recv()
        connection = Connection(ours.detach())
        own(connection.fileno())
        return WorkerHandle(pid, connection, log, stacks)

    def ended(self) -> dict[int, int]:
        """Return how workers that have ended did."""
        found: dict[int, int] = self._ask("ended")
        return found

    def stacks(self, workers: Sequence[WorkerHandle]) -> list[str]:
        """Return the Python stacks of every thread of these workers."""
        before = [_size(worker.stacks) for worker in workers]
        self._ask("signal", [worker.pid for worker in workers], int(signal.SIGUSR1))
        limit = time.monotonic() + STACK_PATIENCE
        sizes = before
        while time.monotonic() < limit:
            time.sleep(0.05)
            latest = [_size(worker.stacks) for worker in workers]
            if latest == sizes and all(now > then for now, then in zip(latest, before, strict=True)):
                break
            sizes = latest
        return [_tail(worker.stacks, start) for worker, start in zip(workers, before, strict=True)]

    def stop(self, workers: Sequence[WorkerHandle]) -> None:
        """Kill workers and close their connections."""
        if workers and self._connection is not None:
            self._ask("stop", [worker.pid for worker in workers])
        for worker in workers:
            if worker.alive:
                worker.printed()
                worker.alive = False
                disown(worker.connection.fileno())
                worker.connection.close()
                worker.log.unlink(missing_ok=True)
                worker.stacks.unlink(missing_ok=True)

    def close(self) -> None:
        """End the server, and with it all workers."""
        if self._process is None or self._connection is None or self._socket is None or self._folder is None:
            return
        disown(self._connection.fileno())
        self._socket.detach()
        self._connection.close()
        try:
            # It may still be importing torch.
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()
        self._process = self._connection = self._socket = self._folder = None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tail(path: Path, start: int) -> str:
    text = path.read_bytes()[start:].decode(errors="replace") if path.exists() else ""
    return text.strip() or "no stack: the process does not answer"


def _environment() -> dict[str, str]:
    """Return what workers inherit: one thread each, the loopback interface, nothing of another launch."""
    inherited = {key: value for key, value in os.environ.items() if not FOREIGN.fullmatch(key)}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    names = {name for _, name in socket.if_nameindex()}
    loopback = next((name for name in ("lo", "lo0") if name in names), None)
    # Without it gloo looks up the machine's own name, which may take seconds or fail.
    interface = {"GLOO_SOCKET_IFNAME": loopback} if loopback else {}
    return {**inherited, **threads, **interface}


__all__ = ["ForkServer", "WorkerHandle"]
