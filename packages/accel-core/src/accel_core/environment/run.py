"""What every run is told through its environment: precision, accumulation, compilation, which strategy."""

from __future__ import annotations

from dataclasses import dataclass

from accel_core.enums import DynamoBackend

from .codecs import BOOL, OPEN_NAME, TEXT, Codec, choice, number, whole
from .records import Record, variable

ACCELERATE_MIXED_PRECISION = "ACCELERATE_MIXED_PRECISION"
"""The mixed precision policy: ``no``, ``fp16``, ``bf16``, ``fp8`` or one that an installed package offers."""
ACCELERATE_USE_CPU = "ACCELERATE_USE_CPU"
"""Whether to stay on the CPU although an accelerator is there."""
ACCELERATE_TORCH_DEVICE = "ACCELERATE_TORCH_DEVICE"
"""The torch device to use instead of the one chosen by local rank, for example ``cuda:1``."""
ACCELERATE_GRADIENT_ACCUMULATION_STEPS = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
"""Micro-batches in one optimizer step."""
ACCELERATE_DEBUG_MODE = "ACCELERATE_DEBUG_MODE"
"""Whether ranks compare what they do before every collective, and raise instead of hanging."""
ACCELERATE_DEBUG_TIMEOUT = "ACCELERATE_DEBUG_TIMEOUT"
"""Seconds that a rank waits in debug mode for one that does not come, before it says where everybody is."""
ACCELERATE_LOG_LEVEL = "ACCELERATE_LOG_LEVEL"
"""The level of loggers made by ``get_logger`` without one: DEBUG, INFO, WARNING, ERROR or CRITICAL."""
ACCELERATE_CPU_AFFINITY = "ACCELERATE_CPU_AFFINITY"
"""Whether each process is bound to the CPU cores nearest to its device."""
ACCELERATE_DYNAMO_BACKEND = "ACCELERATE_DYNAMO_BACKEND"
"""The ``torch.compile`` backend, ``NO`` for none."""
ACCELERATE_DYNAMO_MODE = "ACCELERATE_DYNAMO_MODE"
"""The ``torch.compile`` mode."""
ACCELERATE_DYNAMO_USE_FULLGRAPH = "ACCELERATE_DYNAMO_USE_FULLGRAPH"
"""Whether the whole model must compile into one graph."""
ACCELERATE_DYNAMO_USE_DYNAMIC = "ACCELERATE_DYNAMO_USE_DYNAMIC"
"""Whether shapes are traced as dynamic."""
ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION = "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"
"""Whether repeated blocks are compiled once each instead of the whole model."""
ACCELERATE_DOWNCAST_BF16 = "ACCELERATE_DOWNCAST_BF16"
"""Whether bf16 on a TPU also casts double tensors down."""
ACCELERATE_USE_FSDP = "ACCELERATE_USE_FSDP"
"""Whether to shard the model fully; the details are in the ``FSDP_*`` variables."""
ACCELERATE_USE_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
"""Whether to train with DeepSpeed; the details are in the ``ACCELERATE_DEEPSPEED_*`` variables."""
ACCELERATE_USE_MEGATRON_LM = "ACCELERATE_USE_MEGATRON_LM"
"""Whether to train with Megatron-LM; the details are in the ``MEGATRON_LM_*`` variables."""
ACCELERATE_USE_PARALLELISM_CONFIG = "ACCELERATE_USE_PARALLELISM_CONFIG"
"""Whether to lay the ranks out as a mesh; its sizes are in the ``PARALLELISM_CONFIG_*`` variables."""
FORK_LAUNCHED = "FORK_LAUNCHED"
"""Whether a launcher for functions (notebook, debug) started this process."""

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
"""The documented names of log levels."""

DYNAMO_BACKEND: Codec = choice(*DynamoBackend.list())
"""The documented ``torch.compile`` backends, in any case."""
DYNAMO_MODE: Codec = choice("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""The modes of ``torch.compile``."""


_FEATURES = (
    *("downcast_bf16",),
    *("use_fsdp", "use_deepspeed", "use_megatron_lm", "use_parallelism_config"),
)
"""The fields of `RunConfig` that switch a feature on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig(Record):
    """The settings that every run has. Each field names its variable and the flag of ``launch`` for it."""

    mixed_precision: str | None = variable(ACCELERATE_MIXED_PRECISION, OPEN_NAME, flag="--mixed_precision")
    cpu: bool | None = variable(ACCELERATE_USE_CPU, BOOL, flag="--cpu")
    torch_device: str | None = variable(ACCELERATE_TORCH_DEVICE, TEXT)
    gradient_accumulation_steps: int | None = variable(
        ACCELERATE_GRADIENT_ACCUMULATION_STEPS, whole(1), flag="--gradient_accumulation_steps"
    )
    debug: bool | None = variable(ACCELERATE_DEBUG_MODE, BOOL, flag="--debug")
    debug_timeout: float | None = variable(ACCELERATE_DEBUG_TIMEOUT, number(0))
    log_level: str | None = variable(ACCELERATE_LOG_LEVEL, choice(*LOG_LEVELS))
    cpu_affinity: bool | None = variable(ACCELERATE_CPU_AFFINITY, BOOL, flag="--enable_cpu_affinity")
    dynamo_backend: str | None = variable(ACCELERATE_DYNAMO_BACKEND, DYNAMO_BACKEND, flag="--dynamo_backend")
    dynamo_mode: str | None = variable(ACCELERATE_DYNAMO_MODE, DYNAMO_MODE, flag="--dynamo_mode")
    dynamo_use_fullgraph: bool | None = variable(
        ACCELERATE_DYNAMO_USE_FULLGRAPH, BOOL, flag="--dynamo_use_fullgraph"
    )
    dynamo_use_dynamic: bool | None = variable(
        ACCELERATE_DYNAMO_USE_DYNAMIC, BOOL, flag="--dynamo_use_dynamic"
    )
    dynamo_use_regional_compilation: bool | None = variable(
        ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION, BOOL, flag="--dynamo_use_regional_compilation"
    )
    downcast_bf16: bool | None = variable(ACCELERATE_DOWNCAST_BF16, BOOL, flag="--downcast_bf16")
    use_fsdp: bool | None = variable(ACCELERATE_USE_FSDP, BOOL, flag="--use_fsdp")
    use_deepspeed: bool | None = variable(ACCELERATE_USE_DEEPSPEED, BOOL, flag="--use_deepspeed")
    use_megatron_lm: bool | None = variable(ACCELERATE_USE_MEGATRON_LM, BOOL, flag="--use_megatron_lm")
    use_parallelism_config: bool | None = variable(
        ACCELERATE_USE_PARALLELISM_CONFIG, BOOL, flag="--use_parallelism_config"
    )
    fork_launched: bool | None = variable(FORK_LAUNCHED, BOOL)

    def features(self) -> dict[str, object]:
        """Return, by field, what is asked for beyond processes, precision and accumulation.

        Whoever reads these settings and lacks one of these must refuse it, not run without it.
        """
        said = {name: getattr(self, name) for name in _FEATURES}
        return {name: value for name, value in said.items() if value not in (None, False, "NO")}
