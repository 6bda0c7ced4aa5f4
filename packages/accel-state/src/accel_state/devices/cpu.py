"""The central processor: always there, shared by all processes of a machine."""

from __future__ import annotations

import os
import resource
import sys

import torch
import torch.distributed as dist

from accel_core.protocols import MemoryInfo, Support

from .base import YES, TorchDevice


class CpuRNG:
    """PyTorch's default generator."""

    def seed(self, seed: int) -> None:
        """Seed the default generator; torch seeds no accelerator from here."""
        torch.default_generator.manual_seed(seed)

    def get_state(self) -> torch.Tensor:
        """Return the state of the default generator."""
        return torch.default_generator.get_state()

    def set_state(self, state: torch.Tensor) -> None:
        """Restore what ``get_state`` returned."""
        torch.default_generator.set_state(state.cpu())


class CpuMemory:
    """The machine's memory, and what this process holds of it."""

    def info(self, index: int = 0) -> MemoryInfo:
        """Return bytes free for new work, in the machine, held now and held at most by this process."""
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES")
        # ru_maxrss is in KiB on Linux and in bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        held = _resident(page)
        return MemoryInfo(free=_free(page, total), total=total, allocated=held or peak, peak=max(peak, held))

    def empty_cache(self) -> None:
        """Do nothing: there is no cache between torch and the system's allocator."""

    def reset_peak(self, index: int = 0) -> None:
        """Do nothing: the system measures the peak of the whole process and cannot start again."""


def _free(page: int, total: int) -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - read per call, kept short
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return min(total, page * os.sysconf("SC_AVPHYS_PAGES"))
    return total


def _resident(page: int) -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - read per call, kept short
            return int(file.read().split()[1]) * page
    except OSError:
        return 0


class CpuDevice(TorchDevice):
    """The central processor."""

    name = "cpu"
    distributed_label = "MULTI_CPU"
    title = "CPU"

    def __init__(self) -> None:
        super().__init__()
        self.rng = CpuRNG()  # type: ignore[assignment]
        self.memory = CpuMemory()  # type: ignore[assignment]

    def look(self) -> Support:
        """Say yes: the interpreter runs on it."""
        return YES

    def count(self) -> int:
        """Return 1: torch knows one CPU, however many cores it has."""
        return 1

    def select(self, local_rank: int) -> torch.device:
        """Return the one CPU device, whatever the rank."""
        return torch.device(self.name)

    def backends(self) -> tuple[str, ...]:
        """Return gloo, then mpi and ccl where this PyTorch has them."""
        if not dist.is_available():
            return ()
        built = (
            ("gloo", dist.is_gloo_available()),
            ("mpi", dist.is_mpi_available()),
            ("ccl", hasattr(dist.Backend, "CCL")),
        )
        return tuple(name for name, there in built if there)

    def can_bf16(self) -> Support:
        """Compute in bfloat16: every CPU kernel of torch does, without matrix units only more slowly."""
        return YES

    def can_fp8(self) -> Support:
        """Refuse: a CPU has no fp8 arithmetic, torch would only emulate it."""
        return Support(False, "a CPU has no fp8 arithmetic")

    def can_pin_memory(self) -> Support:
        """Refuse: page-locked memory is for copies to an accelerator."""
        return Support(
            False, "memory is pinned for copies to an accelerator, and this process computes on the CPU"
        )

    def can_sharing(self) -> Support:
        """Accept: the operating system shares the cores."""
        return YES

    def can_distributed(self) -> Support:
        """Accept when torch.distributed has a backend for CPU tensors."""
        return YES if self.backends() else Support(False, "this PyTorch was built without torch.distributed")

    def synchronize(self) -> None:
        """Return at once: CPU operations have finished when they return."""


device = CpuDevice
