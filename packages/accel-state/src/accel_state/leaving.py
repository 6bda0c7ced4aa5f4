"""How a run leaves so that a scheduler starts it again: a marker file, and one exit code on all ranks."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from accel_core.errors import CheckpointError, CollectiveError, ConfigError, Fault, StateError
from accel_core.logging import get_logger

if TYPE_CHECKING:
    from .preemption import PreemptionGuard

logger = get_logger(__name__)

REQUEUE = 75
"""EX_TEMPFAIL of sysexits.h: a failure that is none, and that goes away when it is tried again."""
MARKER = "preempted.json"
PATIENCE = 60.0
LAUNCHER = "ACCEL_LAUNCHER_PID"
"""Where ``accel launch`` tells who it is: it is not to start again what has no time left."""
RESTARTS = "TORCHELASTIC_RESTART_COUNT"


def restart_count(environ: Mapping[str, str] | None = None) -> int:
    """Return how often the launcher has started this run again; 0 without one."""
    text = (os.environ if environ is None else environ).get(RESTARTS, "0")
    if not text.isdecimal():
        raise ConfigError("environment", [Fault(RESTARTS, text, "must be a whole number", "unset it")])
    return int(text)


def leave(
    guard: PreemptionGuard,
    code: int = REQUEUE,
    *,
    directory: str | os.PathLike[str] | None = None,
    step: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    patience: float = PATIENCE,
) -> NoReturn:
    """Write the marker on rank 0, wait for the ranks, and end this process with ``code``. Collective.

    Raises SystemExit: ``finally`` and ``atexit`` run. Whatever of that is not over after ``patience``
    seconds is cut off, so that no rank keeps a job from ending. Raises ConfigError for a code that says
    something else to a shell, StateError outside of the main thread.
    """
    _check(code)
    guard.signals.ignore()
    # Nothing may hang from here on: not the others, and not what runs at exit.
    limit = threading.Timer(patience, _cut_off, [code, patience])
    limit.daemon = True
    limit.start()
    if guard.reason is not None and guard.reason.kind == "deadline":
        _tell_launcher()
    if guard.group.rank == 0 and directory is not None:
        path = checkpoint if checkpoint is not None else guard.saved
        content = described(guard, code, step if step is not None else guard.step, path)
        try:
            write_marker(directory, content)
        except CheckpointError as error:
            # The checkpoint is there and the job is to come back: not for want of a note beside it.
            logger.warning("%s", error)
    with suppress(CollectiveError):
        guard.group.barrier()
    raise SystemExit(code)


def described(
    guard: PreemptionGuard, code: int, step: int | None, checkpoint: str | os.PathLike[str] | None
) -> dict[str, Any]:
    """Return what the marker says."""
    reason = guard.reason
    return {
        "format": 1,
        "code": code,
        "reason": reason.text if reason else None,
        "kind": reason.kind if reason else None,
        "rank": reason.rank if reason else None,
        "step": step,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "world_size": guard.group.world_size,
        "restart_count": restart_count(),
    }


def write_marker(directory: str | os.PathLike[str], content: Mapping[str, Any]) -> Path:
    """Write the marker into ``directory``, whole or not at all. Raises CheckpointError when it cannot be."""
    target = Path(directory) / MARKER
    beside = target.with_name(f".{MARKER}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("w") as file:
                json.dump(content, file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The marker cannot be written: {error}", where=str(target), fix="name a folder with directory="
        ) from error
    return target


def read_marker(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return what the marker in ``directory`` says, None without one. Raises CheckpointError for others."""
    target = Path(directory) / MARKER
    try:
        found = json.loads(target.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"No marker can be read: {error}", where=str(target)) from error
    if not isinstance(found, dict) or found.get("format") != 1:
        raise CheckpointError("This is no marker of this version", where=str(target), fix="remove it")
    return found


def remove_marker(directory: str | os.PathLike[str]) -> None:
    """Remove the marker in ``directory``, if there is one: the run goes on."""
    (Path(directory) / MARKER).unlink(missing_ok=True)


def _check(code: object) -> None:
    if isinstance(code, bool) or not isinstance(code, int) or not 0 < code < 126:
        reason = (
            "must be from 1 to 125: 0 says that the work is done, 126 and more speak of shells and signals"
        )
        raise ConfigError("exit_for_requeue", [Fault("code", code, reason)])
    if threading.current_thread() is not threading.main_thread():
        raise StateError(
            "A process is left from its main thread",
            where=f"exit_for_requeue, thread {threading.current_thread().name}",
            fix="return from the thread, and call it in the main one",
        )


def _tell_launcher() -> None:
    """Tell our launcher, if it is our parent, that what it would start now has no time left."""
    parent = os.getppid()
    if os.environ.get(LAUNCHER) == str(parent):
        with suppress(OSError):
            os.kill(parent, signal.SIGUSR1)


def _cut_off(code: int, patience: float) -> None:
    print(f"accel: still leaving after {patience:g} s; cut off.", file=sys.stderr, flush=True)
    os._exit(code)


__all__ = ["MARKER", "REQUEUE", "leave", "read_marker", "remove_marker", "restart_count", "write_marker"]
