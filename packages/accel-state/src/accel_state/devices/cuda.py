"""NVIDIA GPUs through CUDA, and AMD GPUs through ROCm, which torch shows under the same name."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from accel_core.errors import CapabilityError
from accel_core.protocols import Support

from .base import YES, TorchDevice

_AMD_FP8 = ("gfx94", "gfx95", "gfx12")
"""Architectures with fp8 matrix units (MI300, MI350, RDNA 4)."""


class CudaDevice(TorchDevice):
    """A GPU of NVIDIA or AMD."""

    name = "cuda"
    distributed_label = "MULTI_GPU"
    title = "NVIDIA or AMD GPU"
    visible_variable = "HIP_VISIBLE_DEVICES" if torch.version.hip else "CUDA_VISIBLE_DEVICES"
    collective_backend = "nccl"

    def look(self) -> Support:
        """Look at the build before the driver: a CPU build of torch never has one."""
        if torch.version.cuda is None and torch.version.hip is None:
            return Support(
                False, f"this PyTorch ({torch.__version__}) is built without CUDA and without ROCm"
            )
        return super().look()

    def own_backend(self) -> Support:
        """Tell whether NCCL (RCCL on AMD) is in this build."""
        if not self.available():
            return self.available()
        return YES if dist.is_nccl_available() else Support(False, "this PyTorch is built without NCCL")

    def pci_address(self, index: int) -> str:
        """Return where device ``index`` sits on the PCI bus, as Linux writes it: ``0000:3b:00.0``.

        Raises CapabilityError where this PyTorch does not tell.
        """
        found: Any = torch.cuda.get_device_properties(index)
        if not hasattr(found, "pci_bus_id"):
            raise CapabilityError(
                f"PyTorch {torch.__version__} does not tell where a GPU sits on the PCI bus",
                fix="use a later PyTorch, or leave CPU affinity out",
            )
        return f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"

    def can_bf16(self) -> Support:
        """Compute in bfloat16 in hardware; emulation, which is slower than float32, does not count."""
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return YES
        return Support(False, f"{torch.cuda.get_device_name()} has no bfloat16 units (they came with Ampere)")

    def can_fp8(self) -> Support:
        """Multiply matrices in 8-bit floats: compute capability 8.9, or MI300 and later."""
        name = torch.cuda.get_device_name()
        if torch.version.hip:
            arch = str(torch.cuda.get_device_properties(torch.cuda.current_device()).gcnArchName)
            return (
                YES
                if arch.startswith(_AMD_FP8)
                else Support(False, f"{name} ({arch}) has no fp8 matrix units")
            )
        major, minor = torch.cuda.get_device_capability()
        if (major, minor) >= (8, 9):
            return YES
        return Support(
            False, f"{name} has compute capability {major}.{minor}; fp8 needs 8.9 (Ada, Hopper) or later"
        )


device = CudaDevice
