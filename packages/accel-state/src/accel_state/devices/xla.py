"""TPUs, and whatever else PyTorch/XLA drives, through ``torch_xla``.

``torch_xla`` predates the ``torch.<name>`` contract, so each question has its own function:
https://docs.pytorch.org/xla/release/r2.9/learn/api-guide.html
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from accel_core.errors import CapabilityError
from accel_core.protocols import MemoryInfo, Support

from .base import YES, TorchDevice, TorchMemory, TorchRNG, too_many


def _model() -> Any:
    return importlib.import_module("torch_xla.core.xla_model")


def _runtime() -> Any:
    return importlib.import_module("torch_xla.runtime")


class XlaRNG(TorchRNG):
    """The generator of ``torch_xla``, whose state is one integer."""

    def seed(self, seed: int) -> None:
        """Seed the device of this process."""
        _model().set_rng_state(seed)

    def get_state(self) -> torch.Tensor:
        """Return the integer state as eight bytes."""
        return torch.tensor([_model().get_rng_state()], dtype=torch.int64).view(torch.uint8)

    def set_state(self, state: torch.Tensor) -> None:
        """Restore what ``get_state`` returned."""
        _model().set_rng_state(int(state.cpu().view(torch.int64).item()))


class XlaMemory(TorchMemory):
    """The memory that the PJRT client reports."""

    def info(self, index: int = 0) -> MemoryInfo:
        """Return the memory of device ``index``, in bytes."""
        found = _model().get_memory_info(f"xla:{index}")
        total, used = int(found["bytes_limit"]), int(found["bytes_used"])
        return MemoryInfo(
            free=total - used, total=total, allocated=used, peak=int(found.get("peak_bytes_used", used))
        )

    def empty_cache(self) -> None:
        """Do nothing: the PJRT client keeps its own pool."""

    def reset_peak(self, index: int = 0) -> None:
        """Do nothing: the PJRT client cannot start its peak again."""


class XlaDevice(TorchDevice):
    """A TPU, or another device behind PJRT."""

    name = "xla"
    distributed_label = "XLA"
    title = "XLA device"
    package = "torch_xla"
    visible_variable = "TPU_VISIBLE_CHIPS"
    collective_backend = "xla"
    collective_package = "torch_xla.distributed.xla_backend"

    def __init__(self) -> None:
        super().__init__()
        self.rng = XlaRNG(self)
        self.memory = XlaMemory(self)

    def look(self) -> Support:
        """Look for the package, then for a device that is not the CPU."""
        if importlib.util.find_spec(self.package) is None:
            return Support(False, f"the package {self.package!r}, which drives TPUs, is not installed")
        try:
            kind = str(_runtime().device_type())
        except (ImportError, OSError, RuntimeError) as error:
            return Support(False, f"the package {self.package!r} is installed but does not start: {error}")
        if kind == "CPU":
            return Support(
                False, "PyTorch/XLA found only the CPU (PJRT_DEVICE=CPU), which torch serves better itself"
            )
        return YES

    def count(self) -> int:
        """Return how many devices this process can address."""
        return int(_runtime().addressable_device_count()) if self.available() else 0

    def select(self, local_rank: int) -> torch.device:
        """Return this process's device: PJRT shows each process only its own."""
        answer = self.available()
        if not answer:
            raise CapabilityError(f"The device {self.name!r} cannot be used: {answer.reason}")
        local = int(_runtime().local_process_count()) * self.count()
        if not 0 <= local_rank < max(1, local):
            raise too_many(self.name, local_rank + 1, local, self.visible_variable)
        chosen: torch.device = importlib.import_module("torch_xla").device()
        return chosen

    def can_fp16(self) -> Support:
        """Refuse: TPUs compute in bfloat16."""
        return Support(False, "TPUs compute in bfloat16, not in float16")

    def can_bf16(self) -> Support:
        """Compute in bfloat16: TPUs were built for it."""
        return YES

    def can_float64(self) -> Support:
        """Refuse: TPUs emulate float64."""
        return Support(False, "TPUs have no float64 arithmetic")

    def can_pin_memory(self) -> Support:
        """Refuse: transfers go through the PJRT client."""
        return Support(False, "PyTorch/XLA copies through its own client, which takes no pinned memory")

    def synchronize(self) -> None:
        """Run the recorded graph and wait for it."""
        importlib.import_module("torch_xla").sync(wait=True)


device = XlaDevice
