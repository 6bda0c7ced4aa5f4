"""The variables of fully sharded data parallel training."""

from __future__ import annotations

from dataclasses import dataclass

from .codecs import BOOL, NAMES, choice, whole
from .records import Record, variable

FSDP_VERSION = "FSDP_VERSION"
"""Which of torch's two implementations shards the model: ``1`` or ``2``."""
FSDP_SHARDING_STRATEGY = "FSDP_SHARDING_STRATEGY"
"""What is sharded (version 1): a name, or its number counted from 1."""
FSDP_RESHARD_AFTER_FORWARD = "FSDP_RESHARD_AFTER_FORWARD"
"""Whether parameters are sharded again after the forward pass (version 2)."""
FSDP_OFFLOAD_PARAMS = "FSDP_OFFLOAD_PARAMS"
"""Whether parameters and gradients rest in the memory of the CPU."""
FSDP_MIN_NUM_PARAMS = "FSDP_MIN_NUM_PARAMS"
"""The number of parameters from which a module is wrapped (SIZE_BASED_WRAP)."""
FSDP_AUTO_WRAP_POLICY = "FSDP_AUTO_WRAP_POLICY"
"""How the modules to wrap are chosen."""
FSDP_TRANSFORMER_CLS_TO_WRAP = "FSDP_TRANSFORMER_CLS_TO_WRAP"
"""Classes of the blocks to wrap (TRANSFORMER_BASED_WRAP), separated by commas."""
FSDP_BACKWARD_PREFETCH = "FSDP_BACKWARD_PREFETCH"
"""When the next parameters are fetched in the backward pass (version 1)."""
FSDP_FORWARD_PREFETCH = "FSDP_FORWARD_PREFETCH"
"""Whether the next parameters are fetched during the forward pass (version 1)."""
FSDP_STATE_DICT_TYPE = "FSDP_STATE_DICT_TYPE"
"""The form in which state is saved."""
FSDP_USE_ORIG_PARAMS = "FSDP_USE_ORIG_PARAMS"
"""Whether the module keeps its own parameters instead of flat ones (version 1)."""
FSDP_CPU_RAM_EFFICIENT_LOADING = "FSDP_CPU_RAM_EFFICIENT_LOADING"
"""Whether only one rank of a node reads the pretrained weights."""
FSDP_SYNC_MODULE_STATES = "FSDP_SYNC_MODULE_STATES"
"""Whether parameters and buffers are broadcast from rank 0 when the model is wrapped."""
FSDP_ACTIVATION_CHECKPOINTING = "FSDP_ACTIVATION_CHECKPOINTING"
"""Whether activations are computed again in the backward pass instead of kept."""
FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD = "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD"
"""Whether the activations that are kept rest in the memory of the CPU."""

SHARDING_STRATEGY = choice(
    "FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2", numbered=True
)
AUTO_WRAP_POLICY = choice("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP")
BACKWARD_PREFETCH = choice("BACKWARD_PRE", "BACKWARD_POST", "NO_PREFETCH")
STATE_DICT_TYPE = choice("FULL_STATE_DICT", "LOCAL_STATE_DICT", "SHARDED_STATE_DICT")


@dataclass(frozen=True, slots=True, kw_only=True)
class FsdpConfig(Record):
    """How a model is sharded, as the environment says it; None is what the environment leaves open."""

    version: str | None = variable(FSDP_VERSION, choice("1", "2"), flag="--fsdp_version")
    sharding_strategy: str | None = variable(
        FSDP_SHARDING_STRATEGY, SHARDING_STRATEGY, flag="--fsdp_sharding_strategy"
    )
    reshard_after_forward: bool | None = variable(
        FSDP_RESHARD_AFTER_FORWARD, BOOL, flag="--fsdp_reshard_after_forward"
    )
    offload_params: bool | None = variable(FSDP_OFFLOAD_PARAMS, BOOL, flag="--fsdp_offload_params")
    min_num_params: int | None = variable(FSDP_MIN_NUM_PARAMS, whole(0), flag="--fsdp_min_num_params")
    auto_wrap_policy: str | None = variable(
        FSDP_AUTO_WRAP_POLICY, AUTO_WRAP_POLICY, flag="--fsdp_auto_wrap_policy"
    )
    transformer_cls_to_wrap: tuple[str, ...] | None = variable(
        FSDP_TRANSFORMER_CLS_TO_WRAP, NAMES, flag="--fsdp_transformer_layer_cls_to_wrap"
    )
    backward_prefetch: str | None = variable(
        FSDP_BACKWARD_PREFETCH, BACKWARD_PREFETCH, flag="--fsdp_backward_prefetch"
    )
    forward_prefetch: bool | None = variable(FSDP_FORWARD_PREFETCH, BOOL, flag="--fsdp_forward_prefetch")
    state_dict_type: str | None = variable(
        FSDP_STATE_DICT_TYPE, STATE_DICT_TYPE, flag="--fsdp_state_dict_type"
    )
    use_orig_params: bool | None = variable(FSDP_USE_ORIG_PARAMS, BOOL, flag="--fsdp_use_orig_params")
    cpu_ram_efficient_loading: bool | None = variable(
        FSDP_CPU_RAM_EFFICIENT_LOADING, BOOL, flag="--fsdp_cpu_ram_efficient_loading"
    )
    sync_module_states: bool | None = variable(
        FSDP_SYNC_MODULE_STATES, BOOL, flag="--fsdp_sync_module_states"
    )
    activation_checkpointing: bool | None = variable(
        FSDP_ACTIVATION_CHECKPOINTING, BOOL, flag="--fsdp_activation_checkpointing"
    )
    activation_checkpointing_offload: bool | None = variable(FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD, BOOL)
