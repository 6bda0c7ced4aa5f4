"""The fork server: a process that imports torch once and forks workers that have it already.

It runs no user code and starts no threads, so forking it is safe. It ends when the pool's process
does, and its workers end with it.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from accel_core.testing.server import main; main(int(sys.argv[1]))"
)
"""The program of the server process: its socket and the pool's ``sys.path`` are its arguments."""
PARENT_LOOK = 1.0
"""Seconds between looks at whether the pool's process lives, should another process hold its socket open."""


class Server:
    """Answer the pool's requests, one after the other."""

    def __init__(self, descriptor: int) -> None:
        self.socket = socket.socket(fileno=descriptor)
        self.connection = Connection(descriptor)
        self.parent = os.getppid()
        self.children: set[int] = set()
        self.ended: dict[int, int] = {}

    def serve(self) -> None:
        """Answer until the pool closes its end or is gone."""
        while self._wait():
            try:
                request, *arguments = self.connection.recv()
            except (EOFError, OSError):
                break
            self.connection.send(getattr(self, f"do_{request}")(*arguments))
        self.do_stop(sorted(self.children))

    def _wait(self) -> bool:
        while not select.select([self.socket], [], [], PARENT_LOOK)[0]:
            if os.getppid() != self.parent:
                return False
        return True

    def do_preload(self, modules: Sequence[str]) -> list[str]:
        """Import what workers will need; return those that are installed but fail."""
        broken = []
        for name in modules:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if not name.startswith(error.name or "?"):
                    broken.append(f"{name}: {error}")
            except Exception:  # noqa: BLE001 - a broken module must not end the server; the pool reports it
                broken.append(f"{name}: {traceback.format_exc()}")
        # Objects made so far are never collected, so workers keep sharing their memory pages.
        gc.collect()
        gc.freeze()
        return broken

    def do_fork(self, log: str, stacks: str) -> int:
        """Fork a worker that talks through the descriptor sent along; return its process id."""
        _, descriptors, _, _ = socket.recv_fds(self.socket, 1, 1)
        assert threading.active_count() == 1, "the fork server must have one thread"
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self.connection.close()
                self.socket.detach()
                from .worker import Worker

                Worker(Connection(descriptors[0]), log, stacks).run()
                status = 0
            except BaseException:  # noqa: BLE001 - printed to the log; the worker must never return into the server
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(descriptors[0])
        self.children.add(pid)
        return pid

    def do_ended(self) -> dict[int, int]:
        """Return the exit status of every worker that has ended, negative for a signal."""
        for pid in list(self.children):
            self._reap(pid, os.WNOHANG)
        return self.ended

    def do_signal(self, pids: Sequence[int], number: int) -> None:
        """Send a signal to workers; a process id is ours until it is reaped here."""
        for pid in self.children.intersection(pids):
            os.kill(pid, number)

    def do_stop(self, pids: Sequence[int]) -> dict[int, int]:
        """Kill workers with what they have started, and return how they ended."""
        for pid in pids:
            if pid in self.children:
                # A worker leads its own process group.
                for send in (os.kill, os.killpg):
                    try:
                        send(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                self._reap(pid, 0)
        return {pid: self.ended[pid] for pid in pids if pid in self.ended}

    def _reap(self, pid: int, options: int) -> None:
        found, status = os.waitpid(pid, options)
        if found:
            self.children.discard(pid)
            self.ended[pid] = os.waitstatus_to_exitcode(status)


def main(descriptor: int) -> None:
    """Serve on ``descriptor``."""
    # Ctrl-C is for the pool's process, which then closes its end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.argv[:] = [""]
    Server(descriptor).serve()


def request(connection: Connection, name: str, *arguments: Any) -> Any:
    """Send a request to the server and return its answer."""
    connection.send((name, *arguments))
    return connection.recv()


__all__ = ["BOOT", "Server", "main", "request"]
