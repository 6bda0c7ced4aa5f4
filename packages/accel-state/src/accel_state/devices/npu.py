"""Huawei Ascend through ``torch_npu``, which adds ``torch.npu`` and the backend ``hccl``."""

from __future__ import annotations

from .base import TorchDevice


class NpuDevice(TorchDevice):
    """A Huawei Ascend NPU."""

    name = "npu"
    distributed_label = "MULTI_NPU"
    title = "Huawei Ascend NPU"
    package = "torch_npu"
    visible_variable = "ASCEND_RT_VISIBLE_DEVICES"
    collective_backend = "hccl"


device = NpuDevice
