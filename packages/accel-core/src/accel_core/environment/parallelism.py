"""The variables that lay the ranks out as a mesh."""

from __future__ import annotations

from dataclasses import dataclass

from .codecs import BOOL, OPEN_NAME, choice, whole
from .records import Record, variable

PARALLELISM_CONFIG_DP_REPLICATE_SIZE = "PARALLELISM_CONFIG_DP_REPLICATE_SIZE"
"""Replicas of the model, each with other data."""
PARALLELISM_CONFIG_DP_SHARD_SIZE = "PARALLELISM_CONFIG_DP_SHARD_SIZE"
"""Ranks that shard one replica, each with other data."""
PARALLELISM_CONFIG_TP_SIZE = "PARALLELISM_CONFIG_TP_SIZE"
"""Ranks that share the tensors of one layer."""
PARALLELISM_CONFIG_CP_SIZE = "PARALLELISM_CONFIG_CP_SIZE"
"""Ranks that share one sequence by context parallelism."""
PARALLELISM_CONFIG_CP_BACKEND = "PARALLELISM_CONFIG_CP_BACKEND"
"""What implements context parallelism: ``torch``."""
PARALLELISM_CONFIG_CP_COMM_STRATEGY = "PARALLELISM_CONFIG_CP_COMM_STRATEGY"
"""How keys and values travel between the ranks of one sequence."""
PARALLELISM_CONFIG_SP_SIZE = "PARALLELISM_CONFIG_SP_SIZE"
"""Ranks that share one sequence by sequence parallelism."""
PARALLELISM_CONFIG_SP_BACKEND = "PARALLELISM_CONFIG_SP_BACKEND"
"""What implements sequence parallelism: ``deepspeed``."""
PARALLELISM_CONFIG_SP_SEQ_LENGTH = "PARALLELISM_CONFIG_SP_SEQ_LENGTH"
"""The length of sequences in tokens."""
PARALLELISM_CONFIG_SP_SEQ_LENGTH_IS_VARIABLE = "PARALLELISM_CONFIG_SP_SEQ_LENGTH_IS_VARIABLE"
"""Whether the length of sequences changes between batches."""
PARALLELISM_CONFIG_SP_ATTN_IMPLEMENTATION = "PARALLELISM_CONFIG_SP_ATTN_IMPLEMENTATION"
"""The attention that sequence parallelism works with, for example ``sdpa``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelismVariables(Record):
    """The sizes of the mesh, as the environment says them; None is what the environment leaves open."""

    dp_replicate_size: int | None = variable(
        PARALLELISM_CONFIG_DP_REPLICATE_SIZE, whole(1), flag="--parallelism_config_dp_replicate_size"
    )
    dp_shard_size: int | None = variable(
        PARALLELISM_CONFIG_DP_SHARD_SIZE, whole(1), flag="--parallelism_config_dp_shard_size"
    )
    tp_size: int | None = variable(PARALLELISM_CONFIG_TP_SIZE, whole(1), flag="--parallelism_config_tp_size")
    cp_size: int | None = variable(PARALLELISM_CONFIG_CP_SIZE, whole(1), flag="--parallelism_config_cp_size")
    cp_backend: str | None = variable(
        PARALLELISM_CONFIG_CP_BACKEND, OPEN_NAME, flag="--parallelism_config_cp_backend"
    )
    cp_comm_strategy: str | None = variable(
        PARALLELISM_CONFIG_CP_COMM_STRATEGY,
        choice("allgather", "alltoall"),
        flag="--parallelism_config_cp_comm_strategy",
    )
    sp_size: int | None = variable(PARALLELISM_CONFIG_SP_SIZE, whole(1), flag="--parallelism_config_sp_size")
    sp_backend: str | None = variable(
        PARALLELISM_CONFIG_SP_BACKEND, OPEN_NAME, flag="--parallelism_config_sp_backend"
    )
    sp_seq_length: int | None = variable(
        PARALLELISM_CONFIG_SP_SEQ_LENGTH, whole(1), flag="--parallelism_config_sp_seq_length"
    )
    sp_seq_length_is_variable: bool | None = variable(
        PARALLELISM_CONFIG_SP_SEQ_LENGTH_IS_VARIABLE,
        BOOL,
        flag="--parallelism_config_sp_seq_length_is_variable",
    )
    sp_attn_implementation: str | None = variable(
        PARALLELISM_CONFIG_SP_ATTN_IMPLEMENTATION,
        OPEN_NAME,
        flag="--parallelism_config_sp_attn_implementation",
    )
