"""Read a launch configuration file: YAML or JSON, one mapping, documented keys only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from accel_core.errors import AccelError, ConfigError, Fault

from .later import REASON

FLAT = {
    "use_cpu": "cpu",
    "debug": "debug",
    "enable_cpu_affinity": "enable_cpu_affinity",
    "gpu_ids": "gpu_ids",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "log_dir": "log_dir",
    "machine_rank": "machine_rank",
    "main_process_ip": "main_process_ip",
    "main_process_port": "main_process_port",
    "max_restarts": "max_restarts",
    "mixed_precision": "mixed_precision",
    "monitor_interval": "monitor_interval",
    "num_cpu_threads_per_process": "num_cpu_threads_per_process",
    "num_machines": "num_machines",
    "num_processes": "num_processes",
    "rdzv_backend": "rdzv_backend",
    "rdzv_conf": "rdzv_conf",
    "role": "role",
    "same_network": "same_network",
    "tee": "tee",
}
"""Keys of the file, and the option of ``accel launch`` that each stands for."""

_INT = frozenset(
    {
        "gradient_accumulation_steps", "machine_rank", "main_process_port", "max_restarts",
        "num_cpu_threads_per_process", "num_machines", "num_processes",
    }
)  # fmt: skip
_BOOL = frozenset({"use_cpu", "debug", "enable_cpu_affinity", "same_network"})

HARMLESS: Mapping[str, frozenset[Any]] = {
    "compute_environment": frozenset({"LOCAL_MACHINE"}),
    "distributed_type": frozenset(
        {
            "NO",
            "MULTI_CPU",
            "MULTI_GPU",
            "MULTI_NPU",
            "MULTI_MLU",
            "MULTI_SDAA",
            "MULTI_MUSA",
            "MULTI_XPU",
            "MULTI_HPU",
        }
    ),
    "downcast_bf16": frozenset({"no", False}),
    "dynamo_backend": frozenset({"no", "NO", False}),
    "main_training_function": frozenset({"main"}),
}
"""Keys that say something only with values that this version does not have; these values are let through."""
SECTIONS = (
    "deepspeed_config", "dynamo_config", "fp8_config", "fsdp_config", "ipex_config", "megatron_lm_config",
    "mpirun_config", "parallelism_config",
)  # fmt: skip
TPU = (
    "command_file", "commands", "tpu_env", "tpu_name", "tpu_use_cluster", "tpu_use_sudo",
    "tpu_vm", "tpu_zone", "vm",
)  # fmt: skip


def default_path(environ: Mapping[str, str] | None = None) -> str:
    """Return the documented place of the file that is used when none is named."""
    env = os.environ if environ is None else environ
    if env.get("HF_HOME"):
        folder = os.path.join(env["HF_HOME"], "accelerate")
    elif env.get("XDG_CACHE_HOME"):
        folder = os.path.join(env["XDG_CACHE_HOME"], "huggingface", "accelerate")
    else:
        folder = os.path.join(os.path.expanduser("~"), ".cache", "huggingface", "accelerate")
    return os.path.join(folder, "default_config.yaml")


def read(path: str) -> dict[str, Any]:
    """Return the keys of the file at ``path``.

    Raises AccelError when it is missing or is not one mapping.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise AccelError(
            f"The config file {path!r} cannot be read: {getattr(error, 'strerror', None) or error}",
            fix="check the path given with --config_file",
        ) from error
    data = _parse(path, text)
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise AccelError(
            f"The config file {path!r} is not a mapping of keys to values", fix="write 'key: value' lines"
        )
    return data


def _parse(path: str, text: str) -> Any:
    if path.endswith(".json"):
        import json

        try:
            return json.loads(text)
        except ValueError as error:
            raise AccelError(f"The config file {path!r} is not JSON: {error}") from error
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise AccelError(f"The config file {path!r} is not YAML: {error}") from error


def options(path: str) -> dict[str, Any]:
    """Return what the file at ``path`` says, by name of the option of ``accel launch``.

    Raises ConfigError with every key that is unknown, has an impossible value, or asks for
    something that this version does not do.
    """
    found: dict[str, Any] = {}
    faults: list[Fault] = []
    for key, value in read(path).items():
        if key in FLAT:
            if value is None:
                continue
            try:
                found[FLAT[key]] = _value(key, value)
            except ValueError as error:
                faults.append(Fault(key, value, str(error)))
        else:
            faults.extend(_other(key, value))
    if faults:
        raise ConfigError(f"config file {path}", faults)
    return found


def _value(key: str, value: Any) -> Any:
    if key in _BOOL:
        if isinstance(value, bool):
            return value
        raise ValueError("must be true or false")
    if key in _INT:
        try:
            return int(str(value))
        except ValueError:
            raise ValueError("must be a whole number") from None
    if key == "monitor_interval":
        return float(value)
    # YAML 1.1 reads a bare no as false.
    return "no" if value is False else str(value)


def _other(key: str, value: Any) -> list[Fault]:
    if key in HARMLESS:
        ok = value is None or value in HARMLESS[key]
    elif key in SECTIONS or key in TPU:
        ok = not value
    else:
        known = [*FLAT, *HARMLESS, *SECTIONS, *TPU]
        near = get_close_matches(key, known, n=1)
        return [
            Fault(
                key,
                value,
                "is no key of a config file",
                f"did you mean {near[0]!r}?" if near else "remove it",
            )
        ]
    return [] if ok else [Fault(key, value, REASON, "remove it, or use a version that has it")]


__all__ = ["default_path", "options", "read"]
