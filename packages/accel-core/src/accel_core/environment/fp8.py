"""The variables of training in 8-bit floating point."""

from __future__ import annotations

from dataclasses import dataclass

from .codecs import BOOL, choice, whole
from .records import Record, variable

ACCELERATE_FP8_BACKEND = "ACCELERATE_FP8_BACKEND"
"""What computes in fp8: ``ao`` (torchao), ``te`` (Transformer Engine) or ``msamp`` (MS-AMP)."""
ACCELERATE_FP8_USE_AUTOCAST_DURING_EVAL = "ACCELERATE_FP8_USE_AUTOCAST_DURING_EVAL"
"""Whether evaluation computes in fp8 too (te)."""
ACCELERATE_FP8_MARGIN = "ACCELERATE_FP8_MARGIN"
"""The margin of the scaling factor (te)."""
ACCELERATE_FP8_INTERVAL = "ACCELERATE_FP8_INTERVAL"
"""Steps between new scaling factors (te)."""
ACCELERATE_FP8_FORMAT = "ACCELERATE_FP8_FORMAT"
"""The number format (te)."""
ACCELERATE_FP8_AMAX_HISTORY_LEN = "ACCELERATE_FP8_AMAX_HISTORY_LEN"
"""Steps that the scaling factor looks back (te)."""
ACCELERATE_FP8_AMAX_COMPUTE_ALGO = "ACCELERATE_FP8_AMAX_COMPUTE_ALGO"
"""How the scaling factor comes from that history (te)."""
ACCELERATE_FP8_OVERRIDE_FPROP = "ACCELERATE_FP8_OVERRIDE_FPROP"
"""Whether the forward product computes in higher precision (te)."""
ACCELERATE_FP8_OVERRIDE_DGRAD = "ACCELERATE_FP8_OVERRIDE_DGRAD"
"""Whether the gradient of inputs computes in higher precision (te)."""
ACCELERATE_FP8_OVERRIDE_WGRAD = "ACCELERATE_FP8_OVERRIDE_WGRAD"
"""Whether the gradient of weights computes in higher precision (te)."""
ACCELERATE_FP8_OPT_LEVEL = "ACCELERATE_FP8_OPT_LEVEL"
"""What is kept in 8 bits (msamp)."""
ACCELERATE_FP8_ENABLE_FSDP_FLOAT8_ALL_GATHER = "ACCELERATE_FP8_ENABLE_FSDP_FLOAT8_ALL_GATHER"
"""Whether sharded parameters are gathered in fp8 (ao)."""
ACCELERATE_FP8_PAD_INNER_DIM = "ACCELERATE_FP8_PAD_INNER_DIM"
"""Whether matrices are padded to the multiple of 16 that fp8 needs (ao)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Config(Record):
    """How fp8 is set up, as the environment says it; None is what the environment leaves open."""

    backend: str | None = variable(ACCELERATE_FP8_BACKEND, choice("ao", "te", "msamp"), flag="--fp8_backend")
    use_autocast_during_eval: bool | None = variable(
        ACCELERATE_FP8_USE_AUTOCAST_DURING_EVAL, BOOL, flag="--fp8_use_autocast_during_eval"
    )
    margin: int | None = variable(ACCELERATE_FP8_MARGIN, whole(), flag="--fp8_margin")
    interval: int | None = variable(ACCELERATE_FP8_INTERVAL, whole(1), flag="--fp8_interval")
    format: str | None = variable(
        ACCELERATE_FP8_FORMAT, choice("HYBRID", "E4M3", "E5M2"), flag="--fp8_format"
    )
    amax_history_len: int | None = variable(
        ACCELERATE_FP8_AMAX_HISTORY_LEN, whole(1), flag="--fp8_amax_history_len"
    )
    amax_compute_algo: str | None = variable(
        ACCELERATE_FP8_AMAX_COMPUTE_ALGO, choice("max", "most_recent"), flag="--fp8_amax_compute_algo"
    )
    override_fprop: bool | None = variable(
        ACCELERATE_FP8_OVERRIDE_FPROP, BOOL, flag="--fp8_override_linear_precision"
    )
    override_dgrad: bool | None = variable(
        ACCELERATE_FP8_OVERRIDE_DGRAD, BOOL, flag="--fp8_override_linear_precision"
    )
    override_wgrad: bool | None = variable(
        ACCELERATE_FP8_OVERRIDE_WGRAD, BOOL, flag="--fp8_override_linear_precision"
    )
    opt_level: str | None = variable(ACCELERATE_FP8_OPT_LEVEL, choice("O1", "O2"), flag="--fp8_opt_level")
    enable_fsdp_float8_all_gather: bool | None = variable(
        ACCELERATE_FP8_ENABLE_FSDP_FLOAT8_ALL_GATHER, BOOL, flag="--fp8_enable_fsdp_float8_all_gather"
    )
    pad_inner_dim: bool | None = variable(ACCELERATE_FP8_PAD_INNER_DIM, BOOL, flag="--fp8_pad_inner_dim")
