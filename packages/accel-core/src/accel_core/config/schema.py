"""The keys of the configuration file: what each may hold and which setting it fills."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accel_core.enums import ComputeEnvironment, DistributedType, SageMakerDistributedType
from accel_core.environment.codecs import BOOL, NAMES, TEXT, Codec, choice, whole
from accel_core.environment.deepspeed import DeepSpeedConfig
from accel_core.environment.fp8 import Fp8Config
from accel_core.environment.fsdp import FsdpConfig
from accel_core.environment.megatron import MegatronConfig
from accel_core.environment.parallelism import ParallelismVariables
from accel_core.environment.records import Record
from accel_core.environment.run import RunConfig


@dataclass(frozen=True, slots=True)
class Key:
    """One key: what it may hold, and the field of its family that it fills, if any."""

    codec: Codec
    field: str | None = None


def decode(codec: Codec, value: object) -> Any:
    """Return what a YAML value means to ``codec``; raise ValueError otherwise.

    YAML reads an unquoted ``no`` as False, but ``mixed_precision: no`` means the word.
    """
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, (list, tuple)) and codec in (TEXT, NAMES):
        text = ",".join(map(str, value))
    elif isinstance(value, (str, int, float)):
        text = str(value)
    else:
        raise ValueError(f"must be {codec.kind}")
    parsed = codec.parse(text)
    codec.check(parsed)
    return parsed


def _family(record: type[Record], prefix: str, *, also: Mapping[str, str] = {}) -> dict[str, Key]:
    keys = {prefix + item.field: Key(item.codec, item.field) for item in record.variables()}
    by_field = {item.field: item.codec for item in record.variables()}
    return keys | {key: Key(by_field[name], name) for key, name in also.items()}


_RUN = {item.field: Key(item.codec, item.field) for item in RunConfig.variables()}
_DISTRIBUTED = choice(*dict.fromkeys([*DistributedType.list(), *SageMakerDistributedType.list()]))

TOP: dict[str, Key] = {
    "compute_environment": Key(choice(*ComputeEnvironment.list())),
    "distributed_type": Key(_DISTRIBUTED),
    "mixed_precision": _RUN["mixed_precision"],
    "use_cpu": _RUN["cpu"],
    "debug": _RUN["debug"],
    "enable_cpu_affinity": _RUN["cpu_affinity"],
    "downcast_bf16": _RUN["downcast_bf16"],
    "dynamo_backend": _RUN["dynamo_backend"],
    "num_processes": Key(whole(-1)),
    "num_machines": Key(whole(1)),
    "machine_rank": Key(whole(0)),
    "main_process_ip": Key(TEXT),
    "main_process_port": Key(whole(0)),
    "main_training_function": Key(TEXT),
    "same_network": Key(BOOL),
    "rdzv_backend": Key(TEXT),
    "gpu_ids": Key(TEXT),
    "tpu_name": Key(TEXT),
    "tpu_zone": Key(TEXT),
    "tpu_use_cluster": Key(BOOL),
    "tpu_use_sudo": Key(BOOL),
    "tpu_env": Key(NAMES),
    "command_file": Key(TEXT),
    "commands": Key(TEXT),
    **{
        key: Key(TEXT)
        for key in (
            *("base_job_name", "ec2_instance_type", "iam_role_name", "image_uri", "profile", "region"),
            *("py_version", "pytorch_version", "transformers_version"),
            *("sagemaker_inputs_file", "sagemaker_metrics_file"),
        )
    },
}
"""The keys that hold one value."""

SECTIONS: dict[str, dict[str, Key]] = {
    "dynamo_config": {name: key for name, key in _RUN.items() if name.startswith("dynamo_")},
    "fsdp_config": _family(
        FsdpConfig,
        "fsdp_",
        also={
            "fsdp_transformer_layer_cls_to_wrap": "transformer_cls_to_wrap",
            "fsdp_backward_prefetch_policy": "backward_prefetch",
        },
    ),
    "deepspeed_config": _family(
        DeepSpeedConfig,
        "",
        also={"deepspeed_config_file": "config_file", "deepspeed_moe_layer_cls_names": "moe_layer_cls_names"},
    )
    | {"gradient_accumulation_steps": Key(whole(1))}
    | {
        f"deepspeed_{name}": Key(TEXT)
        for name in ("hostfile", "exclusion_filter", "inclusion_filter", "multinode_launcher")
    },
    "megatron_lm_config": _family(MegatronConfig, "megatron_lm_"),
    "parallelism_config": _family(ParallelismVariables, "parallelism_config_"),
    "fp8_config": _family(
        Fp8Config,
        "",
        also={
            "amax_compute_algorithm": "amax_compute_algo",
            "amax_history_length": "amax_history_len",
            "fp8_format": "format",
        },
    )
    | {"override_linear_precision": Key(NAMES)},
    "mpirun_config": {"mpirun_hostfile": Key(TEXT), "mpirun_ccl": Key(whole(0))},
    "ipex_config": {"ipex": Key(BOOL), "use_xpu": Key(BOOL)},
}
"""The keys that hold a table, and the keys in it."""

USES: dict[str, str] = {"FSDP": "use_fsdp", "DEEPSPEED": "use_deepspeed", "MEGATRON_LM": "use_megatron_lm"}
"""The switch of `RunConfig` that a ``distributed_type`` turns on."""

__all__ = ["SECTIONS", "TOP", "USES", "Key", "decode"]
