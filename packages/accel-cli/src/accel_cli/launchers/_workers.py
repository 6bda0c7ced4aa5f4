"""How the launcher process treats its workers: signals are passed on, and who leaves gets time to.

Torch's classes are passed in, so that nothing of torch is imported here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

REQUEUE = 75
"""EX_TEMPFAIL of sysexits.h: the exit code of a worker that has saved, and wants to be started again."""
LAUNCHER = "ACCEL_LAUNCHER_PID"
"""Where workers find this process, to tell it that their time is over."""
_SURVIVORS = 10
"""Seconds that workers get to end when another has failed and all are to be started again."""
_LAST = 1
"""Seconds between the SIGTERM and the SIGKILL of a worker that has had its time."""


class Told:
    """What this launcher was told, and the workers that it tells.

    ``grace``: seconds that they get to leave. Once told to stop it starts nothing again.
    """

    def __init__(self, grace: float, *, quiet: bool = False) -> None:
        self.grace = grace
        self.quiet = quiet
        self.stop = False
        self.workers: Any = None
        """Torch's context of the latest attempt."""

    def listen(self) -> None:
        """Pass SIGUSR1 on, which schedulers send ahead of SIGTERM; torch takes care of the others."""
        os.environ[LAUNCHER] = str(os.getpid())
        number = getattr(signal, "SIGUSR1", None)  # Windows has none
        if number is not None:
            signal.signal(number, lambda *_: self.tell(number))

    def tell(self, number: int) -> None:
        """Send a signal to the workers, but not to processes of theirs: a loader's would end at once."""
        self.stop = True
        for handler in self._alive():
            with suppress(OSError):
                handler.proc.send_signal(number)

    def codes(self) -> list[int | None]:
        """Return how the workers have ended, None for those that run."""
        return [handler.proc.poll() for handler in self._handlers()]

    def all_left(self) -> bool:
        """Return whether every worker has saved and left."""
        codes = self.codes()
        return bool(codes) and all(code == REQUEUE for code in codes)

    def linger(self) -> None:
        """Wait until the workers have left, as long as they may take."""
        end = time.monotonic() + self.grace
        for handler in self._alive():
            with suppress(subprocess.TimeoutExpired):
                handler.proc.wait(max(0.0, end - time.monotonic()))

    def end_others(self) -> None:
        """End what workers that are gone have left behind."""
        for handler in self._handlers():
            if handler.proc.poll() is not None:
                with suppress(OSError):
                    os.killpg(handler.proc.pid, signal.SIGTERM)

    def say(self, text: str) -> None:
        """Print what happened, unless quiet."""
        if not self.quiet:
            print(f"accel launch: {text}", file=sys.stderr, flush=True)

    def _handlers(self) -> list[Any]:
        return [] if self.workers is None else list(self.workers.subprocess_handlers.values())

    def _alive(self) -> list[Any]:
        return [handler for handler in self._handlers() if handler.proc.poll() is None]


def watched(told: Told, context: Any, failed: Any, stopped: Any, sentence: Any) -> Any:
    """Return torch's ``SubprocessContext`` made to regard what ``told`` knows.

    ``failed``: torch's ChildFailedError, which ends the launcher instead of another attempt. ``stopped``:
    its SignalException, which is on the way while it ends workers for a signal. ``sentence``: what is said
    of a failure.
    """

    class Workers(context):  # type: ignore[misc]
        def start(self) -> None:
            _set_apart(self.envs)
            super().start()
            told.workers = self

        def wait(self, timeout: float = -1, period: float = 1) -> Any:
            result = super().wait(timeout, period)
            if result is not None and result.is_failed():
                failures = {int(self.envs[at]["RANK"]): each for at, each in result.failures.items()}
                error = failed(self.name, failures)
                if told.stop:
                    raise error
                _say_again(told, sentence(error), self.envs[0])
            return result

        def close(self, death_sig: Any = None, timeout: float = 30) -> None:
            running = None in told.codes()
            # Torch also ends workers so that those of a machine that came back can join.
            signalled = running and isinstance(sys.exc_info()[1], stopped)
            if signalled and self.entrypoint == sys.executable:
                told.tell(death_sig)
                told.linger()
                told.end_others()
                timeout = _LAST
            elif signalled:
                # A shell in between would end, and leave the script alone: all of its group is told.
                told.stop, timeout = True, told.grace
            elif REQUEUE in told.codes():
                told.linger()
            elif death_sig is not None or _attempts_left(self.envs[0]):
                # Some worker has failed, and torch ends the others, which may hang for want of it.
                timeout = min(timeout, told.grace, _SURVIVORS)
            super().close(death_sig, timeout)

    return Workers


def _set_apart(envs: dict[int, dict[str, str]]) -> None:
    """Give another attempt on one machine a port of its own.

    Torch's launcher keeps one store for all attempts, in which a process finds the addresses of the
    dead. Of several machines each would need to know the port of the first.
    """
    first = envs[0]
    if first["TORCHELASTIC_RESTART_COUNT"] == "0" or first["GROUP_WORLD_SIZE"] != "1":
        return
    port = str(free_port())
    for environ in envs.values():
        environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, TORCHELASTIC_USE_AGENT_STORE="False")


def free_port() -> int:
    """Return a port that nobody uses now. Asked for after torch is imported, so that it is used at once."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _say_again(told: Told, sentence: str, environ: Any) -> None:
    left, most = _attempts_left(environ), environ["TORCHELASTIC_MAX_RESTARTS"]
    if left:
        told.say(f"{sentence} All processes are started again ({int(most) - left + 1} of {most}).")


def _attempts_left(environ: Any) -> int:
    return int(environ["TORCHELASTIC_MAX_RESTARTS"]) - int(environ["TORCHELASTIC_RESTART_COUNT"])


__all__ = ["LAUNCHER", "REQUEUE", "Told", "free_port", "watched"]
