"""What no machine could start is said before anything is tried."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from accel_core.errors import Fault, LaunchError

from .hardware import Accelerators, cpus

_AT_LEAST = {
    "num_processes": 1,
    "num_machines": 1,
    "machine_rank": 0,
    "num_cpu_threads_per_process": 1,
    "gradient_accumulation_steps": 1,
    "max_restarts": 0,
}
_STREAMS = re.compile(r"[0-3]|(\d:[0-3],)*\d:[0-3]")
_DEVICE = re.compile(r"\d+|(GPU|MIG)-[\w/.-]+")

MOST = 256
"""Processes on one machine that are never too many."""
MOST_PER_CPU = 32


def impossible(settings: Mapping[str, Any]) -> list[Fault]:
    """Return a fault for every setting that cannot be meant, by its own value or beside the others."""
    return [*_numbers(settings), *_texts(settings), *_together(settings)]


def _numbers(settings: Mapping[str, Any]) -> Iterator[Fault]:
    for name, least in _AT_LEAST.items():
        if name in settings and settings[name] < least:
            yield Fault(name, settings[name], f"must be at least {least}")
    port = settings.get("main_process_port")
    if port is not None and not 0 <= port <= 65535:
        yield Fault("main_process_port", port, "must be between 0 and 65535")
    interval = settings.get("monitor_interval", 1.0)
    if not (isfinite(interval) and interval > 0):
        yield Fault("monitor_interval", interval, "must be a finite number of more than 0 seconds")
    grace = settings.get("grace_period", 0.0)
    if not (isfinite(grace) and grace >= 0):
        yield Fault("grace_period", grace, "must be a finite number of 0 seconds or more")


def _texts(settings: Mapping[str, Any]) -> Iterator[Fault]:
    streams = str(settings.get("tee", "0"))
    if not _STREAMS.fullmatch(streams):
        fix = "0 none, 1 out, 2 err, 3 both; or for single local ranks, such as 0:3,1:1"
        yield Fault("tee", streams, "names no streams", fix)
    conf = str(settings.get("rdzv_conf", ""))
    pairs = [pair.partition("=") for pair in conf.split(",")] if conf else []
    if not all(key.strip() and value for key, _, value in pairs):
        yield Fault("rdzv_conf", conf, "must be key=value, several with commas between them")
    ids = settings.get("gpu_ids")
    if ids not in (None, "all"):
        listed = [item.strip() for item in str(ids).split(",")]
        if not all(_DEVICE.fullmatch(item) for item in listed) or len(set(listed)) < len(listed):
            yield Fault("gpu_ids", ids, "must be 'all', or different numbers with commas between them")


def _together(settings: Mapping[str, Any]) -> Iterator[Fault]:
    if settings.get("cpu") and settings.get("multi_gpu"):
        yield Fault("multi_gpu", True, "contradicts --cpu", "keep the one that is meant")
    machines, rank = settings.get("num_machines", 1), settings.get("machine_rank", 0)
    if rank >= machines >= 1:
        fix = f"number the machines from 0 to {machines - 1}, or give --num_machines"
        yield Fault("machine_rank", rank, f"is not one of {machines} machine(s)", fix)


def check_number(processes: int) -> None:
    """Raise LaunchError for so many processes on one machine that they would bring it down."""
    most = max(MOST, MOST_PER_CPU * cpus())
    if processes > most:
        raise LaunchError(
            f"{processes} processes on one machine would bring it down; it has {cpus()} CPUs",
            fix=f"--num_processes of at most {most} per machine",
        )


def check_devices(ids: object, present: Accelerators) -> None:
    """Raise LaunchError for a number that no accelerator of this machine has.

    The driver would hide every accelerator then, and the script would run on the CPU.
    """
    numbers = [int(item) for item in str(ids).replace(" ", "").split(",") if item.isdigit()]
    beyond = [number for number in numbers if number >= present.present]
    if present.present and beyond:
        raise LaunchError(
            f"--gpu_ids {ids}: there is no {present.label} with number {beyond[0]}",
            fix=f"they are numbered from 0 to {present.present - 1}",
        )


__all__ = ["check_devices", "check_number", "impossible"]
