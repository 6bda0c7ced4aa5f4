"""The variables of training with Megatron-LM."""

from __future__ import annotations

from dataclasses import dataclass

from .codecs import BOOL, TEXT, choice, number, whole
from .records import Record, variable

MEGATRON_LM_TP_DEGREE = "MEGATRON_LM_TP_DEGREE"
"""Ranks that share the tensors of one layer."""
MEGATRON_LM_PP_DEGREE = "MEGATRON_LM_PP_DEGREE"
"""Ranks that share the layers of one model as a pipeline."""
MEGATRON_LM_NUM_MICRO_BATCHES = "MEGATRON_LM_NUM_MICRO_BATCHES"
"""Micro-batches in flight in the pipeline."""
MEGATRON_LM_SEQUENCE_PARALLELISM = "MEGATRON_LM_SEQUENCE_PARALLELISM"
"""Whether activations outside of tensor-parallel regions are split along the sequence."""
MEGATRON_LM_RECOMPUTE_ACTIVATIONS = "MEGATRON_LM_RECOMPUTE_ACTIVATIONS"
"""Whether some activations are computed again in the backward pass."""
MEGATRON_LM_USE_DISTRIBUTED_OPTIMIZER = "MEGATRON_LM_USE_DISTRIBUTED_OPTIMIZER"
"""Whether optimizer state is sharded over data-parallel ranks."""
MEGATRON_LM_GRADIENT_CLIPPING = "MEGATRON_LM_GRADIENT_CLIPPING"
"""The norm to which gradients are clipped; 0 for none."""
MEGATRON_LM_USE_CUSTOM_FSDP = "MEGATRON_LM_USE_CUSTOM_FSDP"
"""Whether Megatron's own fully sharded data parallel is used."""
MEGATRON_LM_NO_LOAD_OPTIM = "MEGATRON_LM_NO_LOAD_OPTIM"
"""Whether optimizer state is left out when a checkpoint is loaded."""
MEGATRON_LM_NO_SAVE_OPTIM = "MEGATRON_LM_NO_SAVE_OPTIM"
"""Whether optimizer state is left out when a checkpoint is saved."""
MEGATRON_LM_EOD_MASK_LOSS = "MEGATRON_LM_EOD_MASK_LOSS"
"""Whether the loss of end-of-document tokens is masked."""
MEGATRON_LM_OVERLAP_CPU_OPTIMIZER_D2H_H2D = "MEGATRON_LM_OVERLAP_CPU_OPTIMIZER_D2H_H2D"
"""Whether copies to and from the CPU overlap with the CPU's optimizer step."""
MEGATRON_LM_OPTIMIZER_CPU_OFFLOAD = "MEGATRON_LM_OPTIMIZER_CPU_OFFLOAD"
"""Whether optimizer state rests in the memory of the CPU."""
MEGATRON_LM_USE_PRECISION_AWARE_OPTIMIZER = "MEGATRON_LM_USE_PRECISION_AWARE_OPTIMIZER"
"""Whether optimizer state may be kept in lower precision."""
MEGATRON_LM_DECODER_LAST_PIPELINE_NUM_LAYERS = "MEGATRON_LM_DECODER_LAST_PIPELINE_NUM_LAYERS"
"""Layers on the last pipeline stage when stages are uneven."""
MEGATRON_LM_RECOMPUTE_GRANULARITY = "MEGATRON_LM_RECOMPUTE_GRANULARITY"
"""Which activations are computed again: ``full`` or ``selective``."""
MEGATRON_LM_RECOMPUTE_METHOD = "MEGATRON_LM_RECOMPUTE_METHOD"
"""Which layers compute again: ``uniform`` or ``block``."""
MEGATRON_LM_RECOMPUTE_NUM_LAYERS = "MEGATRON_LM_RECOMPUTE_NUM_LAYERS"
"""Layers that compute again, in one chunk or per stage."""
MEGATRON_LM_ATTENTION_BACKEND = "MEGATRON_LM_ATTENTION_BACKEND"
"""The implementation of attention, in Megatron's own words."""
MEGATRON_LM_EXPERT_MODEL_PARALLEL_SIZE = "MEGATRON_LM_EXPERT_MODEL_PARALLEL_SIZE"
"""Ranks that share the experts of one layer."""
MEGATRON_LM_CONTEXT_PARALLEL_SIZE = "MEGATRON_LM_CONTEXT_PARALLEL_SIZE"
"""Ranks that share one sequence."""
MEGATRON_LM_ATTENTION_DROPOUT = "MEGATRON_LM_ATTENTION_DROPOUT"
"""The dropout probability after attention."""
MEGATRON_LM_HIDDEN_DROPOUT = "MEGATRON_LM_HIDDEN_DROPOUT"
"""The dropout probability of hidden states."""
MEGATRON_LM_ATTENTION_SOFTMAX_IN_FP32 = "MEGATRON_LM_ATTENTION_SOFTMAX_IN_FP32"
"""Whether attention's softmax computes in fp32."""
MEGATRON_LM_EXPERT_TENSOR_PARALLEL_SIZE = "MEGATRON_LM_EXPERT_TENSOR_PARALLEL_SIZE"
"""Ranks that share the tensors of one expert."""
MEGATRON_LM_CALCULATE_PER_TOKEN_LOSS = "MEGATRON_LM_CALCULATE_PER_TOKEN_LOSS"
"""Whether the loss is averaged over tokens instead of micro-batches."""
MEGATRON_LM_USE_ROTARY_POSITION_EMBEDDINGS = "MEGATRON_LM_USE_ROTARY_POSITION_EMBEDDINGS"
"""Whether positions are embedded by rotation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MegatronConfig(Record):
    """How Megatron-LM is set up, as the environment says it; None is what the environment leaves open."""

    tp_degree: int | None = variable(MEGATRON_LM_TP_DEGREE, whole(1), flag="--megatron_lm_tp_degree")
    pp_degree: int | None = variable(MEGATRON_LM_PP_DEGREE, whole(1), flag="--megatron_lm_pp_degree")
    num_micro_batches: int | None = variable(
        MEGATRON_LM_NUM_MICRO_BATCHES, whole(1), flag="--megatron_lm_num_micro_batches"
    )
    sequence_parallelism: bool | None = variable(
        MEGATRON_LM_SEQUENCE_PARALLELISM, BOOL, flag="--megatron_lm_sequence_parallelism"
    )
    recompute_activations: bool | None = variable(
        MEGATRON_LM_RECOMPUTE_ACTIVATIONS, BOOL, flag="--megatron_lm_recompute_activations"
    )
    use_distributed_optimizer: bool | None = variable(
        MEGATRON_LM_USE_DISTRIBUTED_OPTIMIZER, BOOL, flag="--megatron_lm_use_distributed_optimizer"
    )
    gradient_clipping: float | None = variable(
        MEGATRON_LM_GRADIENT_CLIPPING, number(0.0), flag="--megatron_lm_gradient_clipping"
    )
    use_custom_fsdp: bool | None = variable(
        MEGATRON_LM_USE_CUSTOM_FSDP, BOOL, flag="--megatron_lm_use_custom_fsdp"
    )
    no_load_optim: bool | None = variable(MEGATRON_LM_NO_LOAD_OPTIM, BOOL, flag="--megatron_lm_no_load_optim")
    no_save_optim: bool | None = variable(MEGATRON_LM_NO_SAVE_OPTIM, BOOL, flag="--megatron_lm_no_save_optim")
    eod_mask_loss: bool | None = variable(MEGATRON_LM_EOD_MASK_LOSS, BOOL, flag="--megatron_lm_eod_mask_loss")
    overlap_cpu_optimizer_d2h_h2d: bool | None = variable(
        MEGATRON_LM_OVERLAP_CPU_OPTIMIZER_D2H_H2D, BOOL, flag="--megatron_lm_overlap_cpu_optimizer_d2h_h2d"
    )
    optimizer_cpu_offload: bool | None = variable(
        MEGATRON_LM_OPTIMIZER_CPU_OFFLOAD, BOOL, flag="--megatron_lm_optimizer_cpu_offload"
    )
    use_precision_aware_optimizer: bool | None = variable(
        MEGATRON_LM_USE_PRECISION_AWARE_OPTIMIZER, BOOL, flag="--megatron_lm_use_precision_aware_optimizer"
    )
    decoder_last_pipeline_num_layers: int | None = variable(
        MEGATRON_LM_DECODER_LAST_PIPELINE_NUM_LAYERS,
        whole(1),
        flag="--megatron_lm_decoder_last_pipeline_num_layers",
    )
    recompute_granularity: str | None = variable(
        MEGATRON_LM_RECOMPUTE_GRANULARITY,
        choice("full", "selective"),
        flag="--megatron_lm_recompute_granularity",
    )
    recompute_method: str | None = variable(
        MEGATRON_LM_RECOMPUTE_METHOD, choice("uniform", "block"), flag="--megatron_lm_recompute_method"
    )
    recompute_num_layers: int | None = variable(
        MEGATRON_LM_RECOMPUTE_NUM_LAYERS, whole(1), flag="--megatron_lm_recompute_num_layers"
    )
    attention_backend: str | None = variable(
        MEGATRON_LM_ATTENTION_BACKEND, TEXT, flag="--megatron_lm_attention_backend"
    )
    expert_model_parallel_size: int | None = variable(
        MEGATRON_LM_EXPERT_MODEL_PARALLEL_SIZE, whole(1), flag="--megatron_lm_expert_model_parallel_size"
    )
    context_parallel_size: int | None = variable(
        MEGATRON_LM_CONTEXT_PARALLEL_SIZE, whole(1), flag="--megatron_lm_context_parallel_size"
    )
    attention_dropout: float | None = variable(
        MEGATRON_LM_ATTENTION_DROPOUT, number(0.0, 1.0), flag="--megatron_lm_attention_dropout"
    )
    hidden_dropout: float | None = variable(
        MEGATRON_LM_HIDDEN_DROPOUT, number(0.0, 1.0), flag="--megatron_lm_hidden_dropout"
    )
    attention_softmax_in_fp32: bool | None = variable(
        MEGATRON_LM_ATTENTION_SOFTMAX_IN_FP32, BOOL, flag="--megatron_lm_attention_softmax_in_fp32"
    )
    expert_tensor_parallel_size: int | None = variable(
        MEGATRON_LM_EXPERT_TENSOR_PARALLEL_SIZE, whole(1), flag="--megatron_lm_expert_tensor_parallel_size"
    )
    calculate_per_token_loss: bool | None = variable(
        MEGATRON_LM_CALCULATE_PER_TOKEN_LOSS, BOOL, flag="--megatron_lm_calculate_per_token_loss"
    )
    use_rotary_position_embeddings: bool | None = variable(
        MEGATRON_LM_USE_ROTARY_POSITION_EMBEDDINGS, BOOL, flag="--megatron_lm_use_rotary_position_embeddings"
    )
