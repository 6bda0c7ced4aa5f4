"""From options and config file to one `LaunchSpec`: command line, then file, then default."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from accel_core.config.layers import COMMAND_LINE, DEFAULT, ENVIRONMENT, Layer, Layers, Resolved
from accel_core.environment.run import RunConfig
from accel_core.errors import ConfigError, Fault, LaunchError
from accel_core.protocols.command import LaunchSpec

from .config_file import FromFile
from .discovery import offers
from .hardware import Accelerators, accelerators, cpus, visible
from .impossible import check_devices, check_number, impossible
from .later import REASON, refused_features, refused_options

ELASTIC_ONLY = {
    "max_restarts": "0",
    "grace_period": "30.0",
    "log_dir": "",
    "tee": "0",
    "rdzv_backend": "static",
    "rdzv_conf": "",
    "role": "default",
}
"""What only the elastic launcher can do, and the value that asks for nothing."""

_RUN_OPTIONS = {
    "mixed_precision": "mixed_precision",
    "cpu": "cpu",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "debug": "debug",
    "enable_cpu_affinity": "cpu_affinity",
    **{
        name: name
        for name in (
            *("dynamo_backend", "dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic"),
            "dynamo_use_regional_compilation",
        )
    },
}
"""Options that every process is told through the environment contract, and their field there."""
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


class Plan(NamedTuple):
    """What to start and the name of the launcher that does."""

    spec: LaunchSpec
    launcher: str


def plan(
    given: Mapping[str, Any],
    file: FromFile,
    command: Sequence[str],
    environ: Mapping[str, str] | None = None,
) -> Plan:
    """Return how to start ``command`` with the options ``given`` and those of the config ``file``.

    Raises ConfigError with every impossible or unavailable setting, LaunchError when this machine
    has fewer accelerators than processes.
    """
    env = os.environ if environ is None else environ
    settings = {**file.options, **given}
    _raise([*refused_options(given), *impossible(settings)])
    resolved = _resolve(given, file, env)
    run = RunConfig(**resolved.values())
    _raise([*refused_features(run, resolved), *_precision(resolved)])
    wanted = _sizes(settings, env, accelerators(env), cpu=bool(run.cpu))
    extra = _elastic_only(settings)
    if wanted.placed and extra:
        raise LaunchError(
            f"mpirun started the processes, so nobody is there to honour {', '.join(sorted(extra))}",
            fix="leave these options out, or start without mpirun",
        )
    several = wanted.processes > 1 or wanted.machines > 1 or bool(extra) or _worker(env)
    spec = LaunchSpec(
        script=command[0],
        arguments=tuple(command[1:]),
        module=settings.get("module", False),
        python=not settings.get("no_python", False),
        num_processes=wanted.processes,
        num_machines=wanted.machines,
        machine_rank=0 if wanted.placed else settings.get("machine_rank", 0),
        main_address=settings.get("main_process_ip"),
        main_port=settings.get("main_process_port"),
        environment={
            **_to_set(run, env),
            **wanted.selection,
            **_threads(settings, env, wanted.processes // wanted.machines, several=several),
        },
        options={**extra, **_watching(settings, debug=bool(run.debug))} if several else {},
    )
    return Plan(spec, "elastic" if several else "exec")


class _Sizes(NamedTuple):
    processes: int
    machines: int
    selection: Mapping[str, str]
    """The variable that selects accelerators, when some were named."""
    placed: bool
    """Another launcher started the processes; each of them starts one script."""


def _sizes(
    settings: Mapping[str, Any], env: Mapping[str, str], present: Accelerators, *, cpu: bool
) -> _Sizes:
    ids = settings.get("gpu_ids")
    selection = {} if ids in (None, "all") else {present.visible: str(ids).replace(" ", "")}
    if _mpi_size(env, settings):
        return _Sizes(1, 1, selection, placed=True)
    machines = settings.get("num_machines", 1)
    if selection and not cpu:
        check_devices(ids, present)
    available = visible(selection.get(present.visible), present.usable) if present.usable and not cpu else 0
    processes = settings.get("num_processes") or max(1, available) * machines
    check_number(processes // machines)
    if _worker(env) and machines == 1 and "num_processes" not in settings:
        raise LaunchError(
            "This process belongs to a running job already, so it is not clear what is to be started",
            where=f"rank {env.get('RANK')} of {env.get('WORLD_SIZE')}, started by torchrun or accel launch",
            fix="to go on as this rank, run it with python; to start another job, give --num_processes",
        )
    local = processes // machines
    required = available or selection or settings.get("multi_gpu")
    if not cpu and present.counted and required and local > available:
        raise LaunchError(
            f"{local} processes on this machine need as many accelerators; {available} can be used",
            where=f"{present.label}, {present.visible}",
            fix=f"--num_processes {available * machines}, or --cpu"
            if available
            else "to run on the CPU give --cpu, without --multi_gpu and --gpu_ids",
        )
    return _Sizes(processes, machines, selection, placed=False)


def _elastic_only(settings: Mapping[str, Any]) -> dict[str, str]:
    asked = {name: str(settings[name]) for name in ELASTIC_ONLY if name in settings}
    return {name: value for name, value in asked.items() if value not in ("", ELASTIC_ONLY[name])}


def _raise(faults: list[Fault]) -> None:
    if faults:
        raise ConfigError("options", faults)


def _precision(resolved: Resolved) -> list[Fault]:
    """Return a fault for a policy that nothing installed offers; ours are known without looking."""
    name = resolved.value("mixed_precision")
    if name in (None, "no", "fp16", "bf16"):
        return []
    others = {offer.name for offer in offers("accel.precisions")}
    if name in others:
        return []
    reason = REASON if name == "fp8" else "is the name of no installed precision policy"
    known = ", ".join(sorted(others | {"no", "fp16", "bf16"}))
    where = resolved.origin("mixed_precision")
    return [Fault("mixed_precision", name, f"{reason}, said by {where}", f"use one of {known}")]


def _resolve(given: Mapping[str, Any], file: FromFile, env: Mapping[str, str]) -> Resolved:
    """Return the settings that every process is told, each with where it comes from."""
    line = {field: given[name] for name, field in _RUN_OPTIONS.items() if name in given}
    if "dynamo_backend" in line:
        # The environment contract has names in capitals, and one of them without its documented slip.
        line["dynamo_backend"] = line["dynamo_backend"].upper().replace("TORHCHXLA", "TORCHXLA")
    layers = [Layer(COMMAND_LINE, line), Layer(ENVIRONMENT, RunConfig.from_environ(env).values())]
    if file.run is not None:
        layers.append(file.run)
    return Layers(*layers, Layer(DEFAULT, {item.field: None for item in RunConfig.variables()})).resolve()


def _to_set(run: RunConfig, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to set; what the environment says already is left as it is."""
    already = RunConfig.from_environ(env).to_environ()
    return {name: text for name, text in run.to_environ().items() if already.get(name) != text}


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


def _worker(env: Mapping[str, str]) -> bool:
    """Return whether torch's elastic launcher started this process as one rank of several.

    What is started from here gets places of its own, or it would take part in that job unasked.
    """
    return "TORCHELASTIC_RUN_ID" in env and env.get("WORLD_SIZE", "1") != "1"


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


def _watching(settings: Mapping[str, Any], *, debug: bool) -> dict[str, str]:
    chosen = {name: "true" for name, on in (("quiet", settings.get("quiet")), ("debug", debug)) if on}
    if "monitor_interval" in settings:
        chosen["monitor_interval"] = str(settings["monitor_interval"])
    return chosen


__all__ = ["Plan", "plan"]
