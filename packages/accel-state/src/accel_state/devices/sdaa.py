"""Tecorigin through ``torch_sdaa``, which adds ``torch.sdaa`` and the backend ``tccl``."""

from __future__ import annotations

from .base import TorchDevice


class SdaaDevice(TorchDevice):
    """A Tecorigin SDAA."""

    name = "sdaa"
    distributed_label = "MULTI_SDAA"
    title = "Tecorigin SDAA"
    package = "torch_sdaa"
    visible_variable = "SDAA_VISIBLE_DEVICES"
    collective_backend = "tccl"


device = SdaaDevice
