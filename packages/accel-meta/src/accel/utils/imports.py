"""The documented place of questions about hardware."""

from accel_state.availability import (
    is_bf16_available,
    is_cuda_available,
    is_hpu_available,
    is_ipex_available,
    is_mlu_available,
    is_mps_available,
    is_musa_available,
    is_npu_available,
    is_sdaa_available,
    is_torch_xla_available,
    is_xpu_available,
)

__all__ = [
    "is_bf16_available",
    "is_cuda_available",
    "is_hpu_available",
    "is_ipex_available",
    "is_mlu_available",
    "is_mps_available",
    "is_musa_available",
    "is_npu_available",
    "is_sdaa_available",
    "is_torch_xla_available",
    "is_xpu_available",
]
