"""Intel Gaudi through ``habana_frameworks``.

Facts from https://docs.habana.ai (PyTorch API reference): importing ``habana_frameworks.torch``
adds ``torch.hpu``; importing ``habana_frameworks.torch.distributed.hccl`` registers ``hccl``.
"""

from __future__ import annotations

import importlib

from accel_core.protocols import Support

from .base import YES, TorchDevice


class HpuDevice(TorchDevice):
    """An Intel Gaudi."""

    name = "hpu"
    distributed_label = "MULTI_HPU"
    title = "Intel Gaudi"
    package = "habana_frameworks"
    visible_variable = "HABANA_VISIBLE_DEVICES"
    collective_backend = "hccl"
    collective_package = "habana_frameworks.torch.distributed.hccl"

    def load(self) -> None:
        """Import the part of the package that adds ``torch.hpu``."""
        importlib.import_module("habana_frameworks.torch")

    def can_fp16(self) -> Support:
        """Compute in float16: from Gaudi 2 on."""
        return YES if not self._first() else Support(False, "the first Gaudi has no float16 arithmetic")

    def can_bf16(self) -> Support:
        """Compute in bfloat16: every Gaudi does."""
        return YES

    def can_fp8(self) -> Support:
        """Multiply matrices in 8-bit floats: from Gaudi 2 on."""
        return YES if not self._first() else Support(False, "fp8 needs Gaudi 2 or later")

    def can_float64(self) -> Support:
        """Refuse: Gaudi has no float64 arithmetic and would compute in float32."""
        return Support(False, "Gaudi has no float64 arithmetic")

    def _first(self) -> bool:
        return str(self.module.get_device_name()).strip().upper() == "GAUDI"


device = HpuDevice
