"""Moore Threads through ``torch_musa``, which adds ``torch.musa`` and the backend ``mccl``."""

from __future__ import annotations

from .base import TorchDevice


class MusaDevice(TorchDevice):
    """A Moore Threads GPU."""

    name = "musa"
    distributed_label = "MULTI_MUSA"
    title = "Moore Threads GPU"
    package = "torch_musa"
    visible_variable = "MUSA_VISIBLE_DEVICES"
    collective_backend = "mccl"


device = MusaDevice
