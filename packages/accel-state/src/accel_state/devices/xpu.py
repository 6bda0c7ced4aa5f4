"""Intel GPUs through ``torch.xpu``, which torch has built in."""

from __future__ import annotations

import importlib.util

import torch
import torch.distributed as dist

from accel_core.protocols import Support

from .base import YES, TorchDevice


class XpuDevice(TorchDevice):
    """An Intel GPU."""

    name = "xpu"
    distributed_label = "MULTI_XPU"
    title = "Intel GPU"
    visible_variable = "ZE_AFFINITY_MASK"
    collective_backend = "xccl"

    def look(self) -> Support:
        """Look at the build before the driver."""
        # Private, and only for a better reason: without it the answer is that no device is visible.
        compiled = getattr(torch.xpu, "_is_compiled", None)
        if compiled is not None and not compiled():
            return Support(
                False, f"this PyTorch ({torch.__version__}) is built without Intel GPU support (XPU)"
            )
        return super().look()

    def backends(self) -> tuple[str, ...]:
        """Return xccl, which torch has since 2.8, then ccl of Intel's bindings, then gloo through the CPU."""
        if not dist.is_available() or not self.available():
            return ()
        ccl = importlib.util.find_spec("oneccl_bindings_for_pytorch") is not None
        offered = (
            ("xccl", dist.is_backend_available("xccl")),
            ("ccl", ccl),
            ("gloo", dist.is_gloo_available()),
        )
        return tuple(name for name, there in offered if there)

    def can_float64(self) -> Support:
        """Compute in float64: data-centre models do, others emulate or refuse it."""
        properties = torch.xpu.get_device_properties(torch.xpu.current_device())
        if getattr(properties, "has_fp64", False):
            return YES
        return Support(False, f"{properties.name} has no float64 units")


device = XpuDevice
