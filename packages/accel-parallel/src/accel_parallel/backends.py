"""Which backends of ``torch.compile`` there are here: one that is not must be said before training starts."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch

from accel_core.config import TorchDynamoPlugin
from accel_core.errors import CapabilityError, NotInstalledError

_PACKAGES = {
    "aot_torchxla_trace_once": ("torch_xla", "torch-xla"),
    "hpu_backend": ("habana_frameworks", "habana-torch-plugin"),
    "neuron": ("torch_neuronx", "torch-neuronx"),
    "onnxrt": ("onnxruntime", "onnxruntime"),
    "tensorrt": ("torch_tensorrt", "torch-tensorrt"),
    "torchxla_trace_once": ("torch_xla", "torch-xla"),
    "tvm": ("tvm", "apache-tvm"),
}
"""The module that a backend needs, and often registers it, and the distribution that brings it."""
_DEVICES = {"cudagraphs": "cuda", "tensorrt": "cuda", "hpu_backend": "hpu", "neuron": "neuron"}
"""The one kind of device for which a backend does anything."""


def check_backend(settings: TorchDynamoPlugin, device: torch.device) -> None:
    """Raise NotInstalledError or CapabilityError when the backend cannot compile for ``device`` here.

    NotInstalledError for one that a missing distribution brings, CapabilityError for one that this
    PyTorch does not have, or that does nothing on ``device``.
    """
    name = settings.to_dict()["backend"]
    if not isinstance(name, str):
        return
    module, distribution = _PACKAGES.get(name, ("", ""))
    if module:
        if find_spec(module) is None:
            raise NotInstalledError("torch.compile backend", name, distribution)
        import_module(module)
    present = torch.compiler.list_backends(exclude_tags=())
    if name not in present:
        usual = torch.compiler.list_backends()
        raise CapabilityError(
            f"PyTorch {torch.__version__} has no torch.compile backend {name!r}",
            where=f"it has: {', '.join(usual)}",
            fix="use the backend inductor",
        )
    if _DEVICES.get(name, device.type) != device.type:
        raise CapabilityError(
            f"The torch.compile backend {name!r} does nothing on {device.type}: it is for {_DEVICES[name]}",
            where=f"device {device}",
            fix="use the backend inductor",
        )


__all__ = ["check_backend"]
