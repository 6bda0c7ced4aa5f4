"""What a configuration file says to ``accel launch``. `accel_core.config` reads and checks the file itself.

Nothing of the reader is imported before there is a file to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .later import REASON

if TYPE_CHECKING:
    from accel_core.config import ConfigFile
    from accel_core.config.layers import Layer
    from accel_core.errors import Fault

OPTIONS = (
    "num_processes",
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "same_network",
    "rdzv_backend",
    "gpu_ids",
)
"""Keys that mean what the option of the same name means. Those of `RunConfig` come as a layer."""

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "compute_environment": ("LOCAL_MACHINE",),
    "distributed_type": (
        *("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_MLU"),
        *("MULTI_SDAA", "MULTI_MUSA", "MULTI_XPU", "MULTI_HPU"),
    ),
    "downcast_bf16": (False,),
    "main_training_function": ("main",),
    "tpu_use_cluster": (False,),
    "tpu_use_sudo": (False,),
}
"""Keys that other values would make ask for something that this version does not have."""
HONOURED = (*OPTIONS, "mixed_precision", "use_cpu", "debug", "dynamo_backend", "enable_cpu_affinity")
SECTION_KEYS = {
    "deepspeed_config": ("gradient_accumulation_steps",),
    "dynamo_config": (
        *("dynamo_backend", "dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic"),
        "dynamo_use_regional_compilation",
    ),
}
"""Keys of sections that are honoured although the rest of the section is not."""


class FromFile(NamedTuple):
    """What a file says, by option of ``launch``, and as a layer of `RunConfig`."""

    options: Mapping[str, Any]
    run: Layer | None


NOTHING = FromFile({}, None)


def settings(path: str) -> FromFile:
    """Return what the file at ``path`` says.

    Raises ConfigError with every unknown key and wrong value, or with everything that this version
    cannot do.
    """
    from accel_core.config import read_config
    from accel_core.errors import ConfigError

    file = read_config(path)
    faults = list(_refused(file))
    if faults:
        raise ConfigError(f"configuration file {path}", faults)
    options = {key: file.values[key] for key in OPTIONS if key in file.values}
    # Written by tools that leave the number open.
    if options.get("num_processes", 1) < 1:
        del options["num_processes"]
    return FromFile(options, file.run_layer())


def _refused(file: ConfigFile) -> Iterator[Fault]:
    from accel_core.config.schema import SECTIONS
    from accel_core.errors import Fault

    fix = "remove it from the file"
    for key, value in file.values.items():
        if key in SECTIONS:
            asked = set(value) - set(SECTION_KEYS.get(key, ()))
            if asked:
                yield Fault(key, dict(value), REASON, fix)
        elif key not in HONOURED and value not in NEUTRAL.get(key, ()):
            yield Fault(key, value, REASON, fix)


__all__ = ["NOTHING", "FromFile", "settings"]
