"""From options and config file to one `LaunchSpec`: command line, then file, then default."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from accel_core.environment import RunConfig
from accel_core.errors import ConfigError, Fault, LaunchError
from accel_core.protocols.command import LaunchSpec

from .hardware import Accelerators, accelerators, cpus, visible
from .later import refused_options

ELASTIC_ONLY = {
    "max_restarts": "0",
    "log_dir": "",
    "tee": "0",
    "rdzv_backend": "static",
    "rdzv_conf": "",
    "role": "default",
}
"""What only the elastic launcher can do, and the value that asks for nothing."""

_AT_LEAST = {
    "num_processes": 1,
    "num_machines": 1,
    "machine_rank": 0,
    "num_cpu_threads_per_process": 1,
    "gradient_accumulation_steps": 1,
    "max_restarts": 0,
}
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


class Plan(NamedTuple):
    """What to start and the name of the launcher that does."""

    spec: LaunchSpec
    launcher: str


def plan(
    given: Mapping[str, Any],
    file: Mapping[str, Any],
    command: Sequence[str],
    environ: Mapping[str, str] | None = None,
) -> Plan:
    """Return how to start ``command`` with the options ``given`` and those of the config ``file``.

    Raises ConfigError with every impossible or unavailable setting, LaunchError when this machine
    has fewer accelerators than processes.
    """
    env = os.environ if environ is None else environ
    settings = {**file, **given}
    faults = [*refused_options(given), *_impossible(settings)]
    if faults:
        raise ConfigError("options of accel launch", faults)
    present = accelerators(env)
    num_machines = settings.get("num_machines", 1)
    cpu = settings.get("cpu", False)
    hidden = _selection(settings, present)
    available = 0 if cpu else (_count_ids(settings["gpu_ids"], present) if hidden else present.usable)
    mpi = _mpi_size(env, settings)
    num_processes = 1 if mpi else settings.get("num_processes") or max(1, available) * num_machines
    if not mpi:
        _check_enough(settings, present, available, num_processes // num_machines)
    extra = {
        name: str(settings[name])
        for name in ELASTIC_ONLY
        if str(settings.get(name, "")) not in ("", ELASTIC_ONLY[name])
    }
    several = num_processes > 1 or num_machines > 1 or bool(extra)
    spec = LaunchSpec(
        script=command[0],
        arguments=tuple(command[1:]),
        module=settings.get("module", False),
        python=not settings.get("no_python", False),
        num_processes=num_processes,
        num_machines=1 if mpi else num_machines,
        machine_rank=0 if mpi else settings.get("machine_rank", 0),
        main_address=settings.get("main_process_ip"),
        main_port=settings.get("main_process_port"),
        environment={
            **_contract(given, file, env),
            **hidden,
            **_threads(settings, env, num_processes // num_machines, several=several),
        },
        options={**extra, **_watching(settings)} if several else {},
    )
    return Plan(spec, "elastic" if several else "exec")


def _impossible(settings: Mapping[str, Any]) -> list[Fault]:
    faults = [
        Fault(name, settings[name], f"must be at least {least}")
        for name, least in _AT_LEAST.items()
        if name in settings and settings[name] < least
    ]
    port = settings.get("main_process_port")
    if port is not None and not 0 <= port <= 65535:
        faults.append(Fault("main_process_port", port, "must be between 0 and 65535"))
    if settings.get("monitor_interval", 1.0) <= 0:
        faults.append(Fault("monitor_interval", settings["monitor_interval"], "must be more than 0 seconds"))
    if settings.get("mixed_precision") == "fp8":
        faults.append(
            Fault(
                "mixed_precision", "fp8", "is not available in this version of accel", "use bf16, fp16 or no"
            )
        )
    elif settings.get("mixed_precision", "no") not in ("no", "fp16", "bf16"):
        faults.append(
            Fault("mixed_precision", settings["mixed_precision"], "must be one of no, fp16, bf16, fp8")
        )
    if settings.get("cpu") and settings.get("multi_gpu"):
        faults.append(Fault("multi_gpu", True, "contradicts --cpu", "keep the one that is meant"))
    return faults


def _contract(given: Mapping[str, Any], file: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the environment contract to set.

    A variable that is set already outranks the file, as everywhere in accel; the command line
    outranks both.
    """
    named = {
        "mixed_precision": "mixed_precision",
        "cpu": "cpu",
        "gradient_accumulation_steps": "gradient_accumulation_steps",
        "debug": "debug",
        "enable_cpu_affinity": "cpu_affinity",
    }
    from_file = RunConfig(
        **{field: file[name] for name, field in named.items() if file.get(name)}
    ).to_environ()
    from_line = RunConfig(
        **{field: given[name] for name, field in named.items() if given.get(name)}
    ).to_environ()
    return {**{key: value for key, value in from_file.items() if key not in env}, **from_line}


def _mpi_size(env: Mapping[str, str], settings: Mapping[str, Any]) -> int:
    """Return the number of processes that mpirun has started already, 0 when it has not.

    Under mpirun each process runs ``accel launch`` and is one rank: it must start one script, not
    all of them again.
    """
    size = next((int(env[name]) for name in _MPI_SIZES if env.get(name, "").isdigit()), 0)
    if size <= 1:
        return 0
    wanted = settings.get("num_processes")
    if wanted not in (None, 1, size):
        raise LaunchError(
            f"mpirun started {size} processes, but {wanted} are asked for",
            fix=f"leave --num_processes out, or make it {size}",
        )
    return size


def _check_enough(settings: Mapping[str, Any], present: Accelerators, available: int, wanted: int) -> None:
    if settings.get("cpu") or (not available and not settings.get("multi_gpu")):
        return
    if wanted > available:
        raise LaunchError(
            f"{wanted} processes on this machine need as many accelerators; {available} can be used",
            where=f"{present.label}, {present.visible}",
            fix=f"--num_processes {available}" if available else "--cpu runs on the CPU",
        )


def _selection(settings: Mapping[str, Any], present: Accelerators) -> dict[str, str]:
    ids = settings.get("gpu_ids")
    return {} if ids in (None, "all") else {present.visible: str(ids).replace(" ", "")}


def _count_ids(ids: str, present: Accelerators) -> int:
    return visible(ids, present.usable) if present.usable else 0


def _threads(
    settings: Mapping[str, Any], env: Mapping[str, str], local: int, *, several: bool
) -> dict[str, str]:
    """Return OMP_NUM_THREADS: as asked, or for several processes an equal share of this machine's CPUs.

    Every process would take all of them otherwise, and they would spend their time waiting for
    each other. One process alone is left as the user's environment has it.
    """
    wanted = settings.get("num_cpu_threads_per_process")
    if wanted is None and (not several or "OMP_NUM_THREADS" in env):
        return {}
    return {"OMP_NUM_THREADS": str(wanted or max(1, cpus() // max(1, local)))}


def _watching(settings: Mapping[str, Any]) -> dict[str, str]:
    chosen = {name: "true" for name in ("quiet", "debug") if settings.get(name)}
    if "monitor_interval" in settings:
        chosen["monitor_interval"] = str(settings["monitor_interval"])
    return chosen


__all__ = ["Plan", "plan"]
