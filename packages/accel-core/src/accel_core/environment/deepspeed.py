"""The variables of training with DeepSpeed."""

from __future__ import annotations

from dataclasses import dataclass

from .codecs import BOOL, NAMES, TEXT, choice, number, whole
from .records import Record, variable

ACCELERATE_DEEPSPEED_CONFIG_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
"""Path of a DeepSpeed JSON file that holds the whole configuration."""
ACCELERATE_DEEPSPEED_ZERO_STAGE = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
"""What ZeRO shards: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too."""
ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE = "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"
"""Where optimizer state rests: ``none``, ``cpu`` or ``nvme``."""
ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE = "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"
"""Where parameters rest (stage 3): ``none``, ``cpu`` or ``nvme``."""
ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH = "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH"
"""The folder for optimizer state on NVMe."""
ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_NVME_PATH = "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_NVME_PATH"
"""The folder for parameters on NVMe."""
ACCELERATE_GRADIENT_CLIPPING = "ACCELERATE_GRADIENT_CLIPPING"
"""The norm to which DeepSpeed clips gradients."""
ACCELERATE_DEEPSPEED_ZERO3_INIT = "ACCELERATE_DEEPSPEED_ZERO3_INIT"
"""Whether models are built sharded from the start (stage 3)."""
ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL = "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"
"""Whether a saved model is gathered in 16 bits (stage 3)."""
ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES = "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES"
"""Classes of mixture-of-experts layers that are not sharded further, separated by commas."""
ACCELERATE_CONFIG_DS_FIELDS = "ACCELERATE_CONFIG_DS_FIELDS"
"""Settings that the configuration file gave beside a DeepSpeed JSON file: they must not disagree with it."""

OFFLOAD_DEVICE = choice("none", "cpu", "nvme")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSpeedConfig(Record):
    """How DeepSpeed is set up, as the environment says it; None is what the environment leaves open."""

    config_file: str | None = variable(ACCELERATE_DEEPSPEED_CONFIG_FILE, TEXT, flag="--deepspeed_config_file")
    zero_stage: int | None = variable(ACCELERATE_DEEPSPEED_ZERO_STAGE, whole(0), flag="--zero_stage")
    offload_optimizer_device: str | None = variable(
        ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE, OFFLOAD_DEVICE, flag="--offload_optimizer_device"
    )
    offload_param_device: str | None = variable(
        ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE, OFFLOAD_DEVICE, flag="--offload_param_device"
    )
    offload_optimizer_nvme_path: str | None = variable(
        ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH, TEXT, flag="--offload_optimizer_nvme_path"
    )
    offload_param_nvme_path: str | None = variable(
        ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_NVME_PATH, TEXT, flag="--offload_param_nvme_path"
    )
    gradient_clipping: float | None = variable(
        ACCELERATE_GRADIENT_CLIPPING, number(0.0), flag="--gradient_clipping"
    )
    zero3_init_flag: bool | None = variable(ACCELERATE_DEEPSPEED_ZERO3_INIT, BOOL, flag="--zero3_init_flag")
    zero3_save_16bit_model: bool | None = variable(
        ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL, BOOL, flag="--zero3_save_16bit_model"
    )
    moe_layer_cls_names: tuple[str, ...] | None = variable(
        ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES, NAMES, flag="--deepspeed_moe_layer_cls_names"
    )
    config_fields: tuple[str, ...] | None = variable(ACCELERATE_CONFIG_DS_FIELDS, NAMES)
