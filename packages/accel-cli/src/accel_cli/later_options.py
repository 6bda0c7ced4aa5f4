"""The documented options of ``accel launch`` that later versions honour.

They are understood, so that a command that needs them is refused by name instead of being run
without them. An option given with its documented default asks for nothing and is let through.
"""

from __future__ import annotations

from .options import Group, Option

LATER = (
    Group(
        "TPU",
        (
            Option("tpu", default=False, kind=None),
            Option("tpu_cluster", default=False, kind=None),
            Option("no_tpu_cluster", default=True, kind=None, turns="tpu_cluster"),
            Option("tpu_use_sudo", default=False, kind=None),
            Option("vm", kind=list),
            Option("env", kind=list),
            Option("main_training_function"),
            Option("downcast_bf16", default=False, kind=None),
        ),
        available=False,
    ),
    Group(
        "Training Paradigm Arguments",
        (
            Option("use_deepspeed", default=False, kind=None),
            Option("use_fsdp", default=False, kind=None),
            Option("use_parallelism_config", default=False, kind=None),
            Option("use_megatron_lm", default=False, kind=None),
        ),
        available=False,
    ),
    Group(
        "DeepSpeed Arguments",
        (
            Option("deepspeed_config_file"),
            Option("zero_stage"),
            Option("offload_optimizer_device"),
            Option("offload_param_device"),
            Option("offload_optimizer_nvme_path"),
            Option("offload_param_nvme_path"),
            Option("gradient_clipping"),
            Option("zero3_init_flag"),
            Option("zero3_save_16bit_model"),
            Option("deepspeed_hostfile"),
            Option("deepspeed_exclusion_filter"),
            Option("deepspeed_inclusion_filter"),
            Option("deepspeed_multinode_launcher"),
            Option("deepspeed_moe_layer_cls_names"),
        ),
        available=False,
    ),
    Group(
        "FSDP Arguments",
        (
            Option("fsdp_version", default="1", choices=("1", "2")),
            Option("fsdp_offload_params", default="false"),
            Option("fsdp_min_num_params", default=100_000_000, kind=int),
            Option("fsdp_sharding_strategy", default="FULL_SHARD"),
            Option("fsdp_reshard_after_forward", default="true"),
            Option("fsdp_auto_wrap_policy"),
            Option("fsdp_transformer_layer_cls_to_wrap"),
            Option("fsdp_backward_prefetch"),
            Option("fsdp_state_dict_type"),
            Option("fsdp_forward_prefetch", default="false"),
            Option("fsdp_use_orig_params", default="true"),
            Option("fsdp_cpu_ram_efficient_loading", default="true"),
            Option("fsdp_sync_module_states", default="true"),
            Option("fsdp_activation_checkpointing", default="false"),
        ),
        available=False,
    ),
    Group(
        "Megatron-LM Arguments",
        (
            Option("megatron_lm_tp_degree", default=1, kind=int),
            Option("megatron_lm_use_custom_fsdp", default=False),
            Option("megatron_lm_no_load_optim", default=False),
            Option("megatron_lm_eod_mask_loss", default=False),
            Option("megatron_lm_overlap_cpu_optimizer_d2h_h2d", default=False),
            Option("megatron_lm_no_save_optim", default=False),
            Option("megatron_lm_optimizer_cpu_offload", default=False),
            Option("megatron_lm_use_precision_aware_optimizer", default=False),
            Option("megatron_lm_decoder_last_pipeline_num_layers"),
            Option("megatron_lm_pp_degree", default=1, kind=int),
            Option("megatron_lm_num_micro_batches"),
            Option("megatron_lm_sequence_parallelism"),
            Option("megatron_lm_recompute_activations"),
            Option("megatron_lm_use_distributed_optimizer"),
            Option("megatron_lm_gradient_clipping", default=1.0, kind=float),
            Option("megatron_lm_recompute_granularity"),
            Option("megatron_lm_recompute_method"),
            Option("megatron_lm_recompute_num_layers"),
            Option("megatron_lm_attention_backend"),
            Option("megatron_lm_expert_model_parallel_size"),
            Option("megatron_lm_context_parallel_size"),
            Option("megatron_lm_attention_dropout"),
            Option("megatron_lm_hidden_dropout"),
            Option("megatron_lm_attention_softmax_in_fp32"),
            Option("megatron_lm_expert_tensor_parallel_size"),
            Option("megatron_lm_calculate_per_token_loss"),
            Option("megatron_lm_use_rotary_position_embeddings"),
        ),
        available=False,
    ),
    Group(
        "FP8 Arguments",
        (
            Option("fp8_backend", choices=("ao", "te", "msamp")),
            Option("fp8_use_autocast_during_eval", default=False, kind=None),
            Option("fp8_margin", default=0, kind=int),
            Option("fp8_interval", default=1, kind=int),
            Option("fp8_format", default="HYBRID", choices=("HYBRID", "E4M3", "E5M2")),
            Option("fp8_amax_history_len", default=1_024, kind=int),
            Option("fp8_amax_compute_algo", default="most_recent", choices=("max", "most_recent")),
            Option("fp8_override_linear_precision", default=(False, False, False)),
            Option("fp8_opt_level", default="O2", choices=("O1", "O2")),
            Option("fp8_enable_fsdp_float8_all_gather", default="true"),
            Option("fp8_pad_inner_dim", default="true"),
        ),
        available=False,
    ),
    Group(
        "AWS Arguments",
        (
            Option("aws_access_key_id"),
            Option("aws_secret_access_key"),
        ),
        available=False,
    ),
    Group(
        "MPI Arguments",
        (Option("mpirun_hostfile"),),
        available=False,
    ),
    Group(
        "ParallelismConfig Arguments",
        (
            Option("parallelism_config_dp_replicate_size", default=1, kind=int),
            Option("parallelism_config_dp_shard_size", default=1, kind=int),
            Option("parallelism_config_tp_size", default=1, kind=int),
            Option("parallelism_config_cp_size", default=1, kind=int),
            Option("parallelism_config_cp_backend", default="torch", choices=("torch",)),
            Option("parallelism_config_cp_comm_strategy", default="allgather"),
            Option("parallelism_config_sp_size", default=1, kind=int),
            Option("parallelism_config_sp_backend", default="deepspeed", choices=("deepspeed",)),
            Option("parallelism_config_sp_seq_length"),
            Option("parallelism_config_sp_seq_length_is_variable", default=True),
            Option("parallelism_config_sp_attn_implementation", default="sdpa"),
        ),
        available=False,
    ),
)

__all__ = ["LATER"]
