"""One worker of the pool: takes a call, runs it, tells the outcome, and cleans up after it."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from .reset import Baseline
from .shipping import dumps, unpack

THREAD_PATIENCE = 2.0
"""Seconds that threads get to end after a call."""


Answer = tuple[str, bytes | None, str]


class Worker:
    """A process that lives for many calls. ``log`` takes what it prints, ``stacks`` its stacks when asked."""

    def __init__(self, connection: Connection, log: str, stacks: str) -> None:
        self.connection = connection
        os.setpgid(0, 0)
        _die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._redirect(log)
        # Kept open for as long as the process lives: the handler writes to it from within a signal.
        self._stacks = open(stacks, "a", encoding="utf-8")  # noqa: PTH123, SIM115
        faulthandler.enable(all_threads=True)
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)
        self.baseline = Baseline.take()

    def _redirect(self, log: str) -> None:
        nothing = os.open(os.devnull, os.O_RDONLY)
        printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for source, target in ((nothing, 0), (printed, 1), (printed, 2)):
            os.dup2(source, target)
        os.close(nothing)
        os.close(printed)
        # Line by line, so that what a process printed before it was killed is there.
        for number, name in ((1, "stdout"), (2, "stderr")):
            stream = os.fdopen(number, "w", 1, "utf-8", "backslashreplace", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)

    def run(self) -> None:
        """Take calls until the pool closes its end."""
        while True:
            try:
                kind, *arguments = self.connection.recv()
            except (EOFError, OSError):
                return
            answer = self.call(*arguments) if kind == "call" else self.clean()
            # The bytes go through a pipe: flushed prints are in the log before the pool reads it.
            sys.stdout.flush()
            sys.stderr.flush()
            try:
                self.connection.send(answer)
            except OSError:
                return

    def call(self, payload: bytes, environment: Mapping[str, str], folder: str) -> Answer:
        """Run one call; return ``("ok", result, "")`` or ``("error", exception, traceback)``, pickled."""
        os.ftruncate(1, 0)
        os.environ.update(environment)
        try:
            os.chdir(folder)
            function, arguments = unpack(payload)
            result = function(*arguments)
            return "ok", dumps(result), ""
        except BaseException as error:  # noqa: BLE001 - every end of the call is the caller's to judge
            text = "".join(traceback.format_exception(_shorn(error)))
            return "error", _pickled(error), text

    def clean(self) -> tuple[str, list[str]]:
        """Undo what a call changed; return what could not be undone."""
        faults = self.baseline.restore()
        gc.collect()
        faults.extend(_threads_left())
        return "clean", faults


def _shorn(error: BaseException) -> BaseException:
    """Drop the pool's own frame from the traceback."""
    trace = error.__traceback__
    return error.with_traceback(trace.tb_next) if trace is not None and trace.tb_next is not None else error


def _pickled(error: BaseException) -> bytes | None:
    """Return the exception as bytes, or None when it does not survive the journey."""
    try:
        data = dumps(error)
        unpack(data)
    except Exception:  # noqa: BLE001 - classes fail to pickle in every way there is; the traceback text remains
        return None
    return data


def _threads_left() -> list[str]:
    faults = []
    for thread in threading.enumerate():
        if thread is threading.main_thread() or thread.daemon:
            continue
        thread.join(THREAD_PATIENCE)
        if thread.is_alive():
            faults.append(f"thread {thread.name!r} still runs: join it before the function returns")
    return faults


def _die_with_parent() -> None:
    """Ask Linux for SIGKILL when the server ends; elsewhere the closed connection ends an idle worker."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, int(signal.SIGKILL), 0, 0, 0)


def group_call(function: Any, backend: str, arguments: tuple[Any, ...]) -> Any:
    """Call ``function`` inside a process group of all ranks."""
    import torch.distributed as dist

    dist.init_process_group(backend)
    return function(*arguments)


__all__ = ["Worker", "group_call"]
