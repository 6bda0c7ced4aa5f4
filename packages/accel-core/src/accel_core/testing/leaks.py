"""What a test may not leave behind: environment variables, threads, files, process groups, accel state."""

from __future__ import annotations

import gc
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from .owned import owned

KINDS = ("env", "threads", "files", "group", "state")
"""What ``@pytest.mark.leaks(..., reason=...)`` can allow."""
ALLOWED_VARIABLES = (
    *("PYTEST_", "COV_", "COVERAGE_"),
    *("KMP_", "TORCHINDUCTOR_", "TRITON_", "KINETO_", "TF_CPP_", "QT_", "MPL"),
)
"""Prefixes of variables that the test runner, and torch and plotting libraries on import, set themselves."""
ALLOWED_FILES = ("/dev/", "/proc/", "/sys/", "/memfd:", "/usr/share/", "/etc/")
"""Where files lie that libraries keep open on purpose. Pipes and event loops are not looked at."""
THREAD_PATIENCE = 1.0
"""Seconds that threads get to end after a test."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The process before a test."""

    environment: dict[str, str]
    threads: frozenset[int | None]
    files: dict[int, str]
    group: bool
    state: bool

    @classmethod
    def take(cls) -> Snapshot:
        """Look at the process now."""
        return cls(
            environment=dict(os.environ),
            threads=frozenset(thread.ident for thread in threading.enumerate()),
            files=open_files(),
            group=_group_left(),
            state=_state_left(),
        )

    def leaked(self, allowed: frozenset[str] = frozenset()) -> list[str]:
        """Return a sentence for each thing that is left, and put back what can be put back."""
        found: list[str] = []
        for kind, look in (
            # State first: it owns the group, whose store owns sockets and threads.
            ("state", self._state),
            ("group", self._group),
            ("threads", self._threads),
            ("files", self._files),
            ("env", self._environment),
        ):
            sentences = look()
            if kind not in allowed:
                found.extend(sentences)
        return found

    def _state(self) -> list[str]:
        if self.state or not _state_left():
            return []
        sys.modules["accel_state.process"].reset()
        return ["state: accel's process state is still set (call accel_state.process.reset())"]

    def _group(self) -> list[str]:
        if self.group or not _group_left():
            return []
        import torch.distributed as dist

        dist.destroy_process_group()
        return ["group: a process group is left initialised (call torch.distributed.destroy_process_group())"]

    def _threads(self) -> list[str]:
        left = []
        for thread in threading.enumerate():
            if thread.daemon or thread.ident in self.threads or thread is threading.main_thread():
                continue
            thread.join(THREAD_PATIENCE)
            if thread.is_alive():
                left.append(f"threads: {thread.name!r} still runs (join it, or shut its executor down)")
        return left

    def _files(self) -> list[str]:
        new = self._new_files()
        if new:
            # An object in a cycle closes its file when it is collected: no leak.
            gc.collect()
            new = self._new_files()
        return [
            f"files: descriptor {number} is open on {target} (close it, use with)" for number, target in new
        ]

    def _new_files(self) -> list[tuple[int, str]]:
        return [
            (number, target)
            for number, target in sorted(open_files().items())
            if self.files.get(number) != target and number not in owned()
        ]

    def _environment(self) -> list[str]:
        now = dict(os.environ)
        changed = sorted(
            key
            for key in now.keys() | self.environment.keys()
            if now.get(key) != self.environment.get(key) and not key.startswith(ALLOWED_VARIABLES)
        )
        for key in changed:
            if key in self.environment:
                os.environ[key] = self.environment[key]
            else:
                del os.environ[key]
        before = self.environment
        return [f"env: {key} {_change(before.get(key), now.get(key))} (use monkeypatch)" for key in changed]


def open_files() -> dict[int, str]:
    """Return descriptors of files and sockets with what they are open on; empty where /proc is missing."""
    folder = Path("/proc/self/fd")
    found: dict[int, str] = {}
    if not folder.is_dir():
        return found
    for name in os.listdir(folder):  # noqa: PTH208 - numbers, twice per test
        try:
            target = os.readlink(folder / name)  # noqa: PTH115
        except OSError:
            continue
        if target.startswith("socket:") or (target.startswith("/") and not target.startswith(ALLOWED_FILES)):
            found[int(name)] = target
    return found


def _group_left() -> bool:
    dist = sys.modules.get("torch.distributed")
    return dist is not None and bool(dist.is_available() and dist.is_initialized())


def _state_left() -> bool:
    process = sys.modules.get("accel_state.process")
    current = getattr(process, "current", None)
    return current is not None and current() is not None


def _change(before: str | None, after: str | None) -> str:
    if before is None:
        return f"was set to {after!r}"
    if after is None:
        return f"was deleted, it was {before!r}"
    return f"was changed from {before!r} to {after!r}"


__all__ = ["ALLOWED_FILES", "ALLOWED_VARIABLES", "KINDS", "Snapshot", "open_files"]
