"""Measure whole commands: CPU seconds and start-up of the command line and of ``import``."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
from collections.abc import Sequence

RUNS = 7
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""An installed program finds its modules compiled; where this is set, ours would be compiled in each run."""


def cpu_seconds(command: Sequence[str]) -> float:
    """Run ``command`` once; return the CPU seconds of it and of every process that it waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def in_turn(commands: dict[str, Sequence[str]]) -> dict[str, float]:
    """Return the median CPU seconds of each command; they run in turn, after one run that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(RUNS + 1):
        for name, command in commands.items():
            seconds = cpu_seconds(command)
            if turn:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}
