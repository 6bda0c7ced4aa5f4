"""The GPU of Apple silicon through Metal. One device, memory shared with the CPU, no collectives."""

from __future__ import annotations

import torch

from accel_core.errors import CapabilityError
from accel_core.protocols import MemoryInfo, Support

from .base import YES, TorchDevice, TorchMemory, TorchRNG, too_many


class MpsRNG(TorchRNG):
    """The generator behind ``torch.mps``."""

    def seed(self, seed: int) -> None:
        """Seed the one device."""
        torch.mps.manual_seed(seed)


class MpsMemory(TorchMemory):
    """Unified memory, as far as Metal recommends using it."""

    def info(self, index: int = 0) -> MemoryInfo:
        """Return bytes of the recommended working set; Metal measures no peak, so it is what is held now."""
        total = int(torch.mps.recommended_max_memory())
        held = int(torch.mps.driver_allocated_memory())
        used = int(torch.mps.current_allocated_memory())
        return MemoryInfo(free=max(0, total - held), total=total, allocated=used, peak=used)

    def reset_peak(self, index: int = 0) -> None:
        """Do nothing: Metal measures no peak."""


class MpsDevice(TorchDevice):
    """The GPU of Apple silicon."""

    name = "mps"
    title = "Apple GPU"

    def __init__(self) -> None:
        super().__init__()
        self.rng = MpsRNG(self)
        self.memory = MpsMemory(self)

    def look(self) -> Support:
        """Look at the build, then at the system."""
        if not torch.backends.mps.is_built():
            return Support(False, f"this PyTorch ({torch.__version__}) is built without Metal (MPS)")
        if not torch.backends.mps.is_available():
            return Support(False, "MPS needs Apple silicon and a recent macOS")
        return YES

    def count(self) -> int:
        """Return 1 where Metal is there."""
        return 1 if self.available() else 0

    def select(self, local_rank: int) -> torch.device:
        """Return the one device; there is none to choose and nothing to make current."""
        answer = self.available()
        if not answer:
            raise CapabilityError(f"The device {self.name!r} cannot be used: {answer.reason}")
        if local_rank != 0:
            raise too_many(self.name, local_rank + 1, 1, "")
        return torch.device(self.name, 0)

    def backends(self) -> tuple[str, ...]:
        """Return nothing: no backend of torch.distributed takes MPS tensors."""
        return ()

    def own_backend(self) -> Support:
        """Refuse, with the reason."""
        return Support(
            False, "torch.distributed has no backend for MPS tensors; use cpu=True for several processes"
        )

    def can_bf16(self) -> Support:
        """Compute in bfloat16: Metal has it since macOS 14."""
        if torch.backends.mps.is_macos_or_newer(14, 0):
            return YES
        return Support(False, "bfloat16 on MPS needs macOS 14 or later")

    def can_float64(self) -> Support:
        """Refuse: Metal has no float64."""
        return Support(False, "Metal has no float64")

    def can_pin_memory(self) -> Support:
        """Refuse: the memory is the CPU's own, there is nothing to copy from."""
        return Support(False, "MPS shares its memory with the CPU; pinning has no meaning there")


device = MpsDevice
