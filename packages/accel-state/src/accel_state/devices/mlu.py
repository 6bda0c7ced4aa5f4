"""Cambricon through ``torch_mlu``, which adds ``torch.mlu`` and the backend ``cncl``."""

from __future__ import annotations

from .base import TorchDevice


class MluDevice(TorchDevice):
    """A Cambricon MLU."""

    name = "mlu"
    distributed_label = "MULTI_MLU"
    title = "Cambricon MLU"
    package = "torch_mlu"
    visible_variable = "MLU_VISIBLE_DEVICES"
    collective_backend = "cncl"


device = MluDevice
