"""Profiling this process with torch's profiler, one trace a rank and cycle, in files that do not collide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from accel_core.config import ProfileKwargs
from accel_core.errors import ConfigError, Fault, StateError
from accel_core.logging import get_logger

logger = get_logger(__name__)


@contextmanager
def profiled(handler: ProfileKwargs, rank: int) -> Iterator[torch.profiler.profile]:
    """Record what the body does; yield the profiler, whose ``step()`` ends an iteration of its schedule.

    With an ``output_trace_dir``, made if it is not there, a Chrome trace is written as soon as it is
    recorded: ``profile_<rank>.json``, and for the later cycles of a schedule ``profile_<rank>_<n>.json``
    with n from 1. Also when the body raises. Nothing is exchanged between ranks: one alone may profile.

    Raises CapabilityError for activities that cannot be recorded here, ConfigError for a folder that
    cannot be made, StateError inside another profiler, and when ``on_trace_ready`` took the trace away.
    """
    running = getattr(torch.autograd, "_profiler_enabled", None)
    if running is not None and running():
        raise StateError(
            "A profiler runs in this process already; torch would drop what it has recorded",
            where=f"rank {rank}",
            fix="end it before another one starts",
        )
    if handler.output_trace_dir is None:
        with handler.build() as profiler:
            yield profiler
        return
    traces = _Traces(_folder(handler), rank, handler.on_trace_ready)
    with replace(handler, on_trace_ready=traces).build() as profiler:
        yield profiler
    if not traces.written:
        logger.warning(
            "No trace was written to %s: it ended after %d step(s), before its schedule %s recorded one."
            " Call step() of the profiler in each iteration, or skip and wait less.",
            traces.folder,
            profiler.step_num,
            handler.schedule_option,
        )


def _folder(handler: ProfileKwargs) -> Path:
    folder = Path(str(handler.output_trace_dir))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be made: {error.strerror}"
        fault = Fault("output_trace_dir", str(folder), reason, "name a folder that can be written to")
        raise ConfigError("ProfileKwargs", [fault]) from error
    return folder


class _Traces:
    """Write each trace that is ready, after the user's own handler had it."""

    def __init__(self, folder: Path, rank: int, before: Callable[..., Any] | None) -> None:
        self.folder = folder
        self.rank = rank
        self.before = before
        self.written = 0

    def __call__(self, profiler: torch.profiler.profile) -> None:
        """Write the trace that ``profiler`` has just recorded."""
        if self.before is not None:
            self.before(profiler)
        cycle = f"_{self.written}" if self.written else ""
        path = self.folder / f"profile_{self.rank}{cycle}.json"
        try:
            profiler.export_chrome_trace(str(path))
        except RuntimeError as error:
            if "already saved" not in str(error):
                raise
            raise StateError(
                "torch writes a trace once, and on_trace_ready has written it elsewhere already",
                where=str(path),
                fix="leave output_trace_dir out, or export_chrome_trace() in on_trace_ready",
            ) from error
        self.written += 1


__all__ = ["profiled"]
