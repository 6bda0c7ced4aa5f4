"""What accelerators that live in a ``torch.<name>`` namespace have in common.

PyTorch asks every device backend, in its tree or out of it, to offer the same functions there
(``is_available``, ``device_count``, ``set_device``, ``manual_seed_all``, ``get_rng_state``,
``mem_get_info``, ...). A kind of hardware that follows this is a subclass with a few class
attributes; https://docs.pytorch.org/docs/stable/torch.html#accelerators lists the contract.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from accel_core.errors import CapabilityError
from accel_core.protocols import MemoryInfo, Support

YES = Support(True)

_LOAD_FAULTS = (ImportError, OSError, RuntimeError, AttributeError)
"""What a vendor package raises when its driver or library does not fit."""


class TorchRNG:
    """The generators behind ``torch.<name>``."""

    def __init__(self, device: TorchDevice) -> None:
        self._device = device

    def seed(self, seed: int) -> None:
        """Seed the generators of every device of this kind in this process."""
        self._device.module.manual_seed_all(seed)

    def get_state(self) -> torch.Tensor:
        """Return the state of the current device's generator: a uint8 tensor on the CPU."""
        state: torch.Tensor = self._device.module.get_rng_state()
        return state.cpu()

    def set_state(self, state: torch.Tensor) -> None:
        """Restore what ``get_state`` returned."""
        self._device.module.set_rng_state(state.cpu())


class TorchMemory:
    """The caching allocator behind ``torch.<name>``."""

    def __init__(self, device: TorchDevice) -> None:
        self._device = device

    def info(self, index: int = 0) -> MemoryInfo:
        """Return the memory of device ``index``, in bytes."""
        module = self._device.module
        free, total = module.mem_get_info(index)
        return MemoryInfo(
            free=int(free),
            total=int(total),
            allocated=int(module.memory_allocated(index)),
            peak=int(module.max_memory_allocated(index)),
        )

    def empty_cache(self) -> None:
        """Give cached, unused memory back to the system."""
        self._device.module.empty_cache()

    def reset_peak(self, index: int = 0) -> None:
        """Start a new measurement of ``MemoryInfo.peak``."""
        self._device.module.reset_peak_memory_stats(index)


class TorchDevice:
    """One accelerator whose functions live in ``torch.<name>``.

    Subclasses set the class attributes and override what their hardware does differently.
    """

    name: str = ""
    distributed_label: str = "NO"
    title: ClassVar[str] = ""
    """What the hardware is called in error texts."""
    package: ClassVar[str] = ""
    """The import name of the vendor package that adds ``torch.<name>``; empty when torch has it built in."""
    visible_variable: ClassVar[str] = ""
    """The environment variable that hides devices from a process."""
    collective_backend: ClassVar[str] = ""
    """The backend for tensors on this device."""
    collective_package: ClassVar[str] = ""
    """The module whose import registers that backend; empty when nothing is left to import."""

    def __init__(self) -> None:
        self.rng = TorchRNG(self)
        self.memory = TorchMemory(self)
        self._answer: Support | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def module(self) -> Any:
        """Return the ``torch.<name>`` namespace; call it only after ``available`` said yes."""
        return getattr(torch, self.name)

    # -- is it there -----------------------------------------------------------------------------

    def available(self) -> Support:
        """Tell whether the hardware and its software are usable in this process.

        A missing vendor package is noticed without importing it. The answer is kept: drivers do
        not come and go while a process runs.
        """
        if self._answer is None:
            self._answer = self.look()
        return self._answer

    def look(self) -> Support:
        """Look for the vendor package, then for the driver and at least one device."""
        if self.package:
            if importlib.util.find_spec(self.package) is None:
                return Support(
                    False, f"the package {self.package!r}, which drives {self.title}, is not installed"
                )
            try:
                self.load()
            except _LOAD_FAULTS as error:
                return Support(False, f"the package {self.package!r} is installed but does not load: {error}")
        module = getattr(torch, self.name, None)
        if module is None:
            return Support(False, f"this PyTorch ({torch.__version__}) has no torch.{self.name}")
        try:
            found = bool(module.is_available()) and int(module.device_count()) > 0
        except _LOAD_FAULTS as error:
            return Support(False, f"the driver of {self.title} does not answer: {error}")
        return YES if found else Support(False, self.invisible())

    def load(self) -> None:
        """Import the vendor package; called only when it is installed."""
        importlib.import_module(self.package)

    def invisible(self) -> str:
        """Return the reason shown when the software is there but no device is."""
        value = os.environ.get(self.visible_variable) if self.visible_variable else None
        hint = f" ({self.visible_variable}={value!r})" if value is not None else ""
        return f"no {self.title} or no driver for it is visible to this process{hint}"

    # -- which one -------------------------------------------------------------------------------

    def count(self) -> int:
        """Return how many devices of this kind this process can see."""
        return int(self.module.device_count()) if self.available() else 0

    def select(self, local_rank: int) -> torch.device:
        """Make the device of ``local_rank`` the current one and return it.

        Raises CapabilityError when there is no device for that rank.
        """
        answer = self.available()
        if not answer:
            raise CapabilityError(f"The device {self.name!r} cannot be used: {answer.reason}")
        count = self.count()
        if not 0 <= local_rank < count:
            raise too_many(self.name, local_rank + 1, count, self.visible_variable)
        device = torch.device(self.name, local_rank)
        self.module.set_device(device)
        return device

    # -- what it can do --------------------------------------------------------------------------

    def backends(self) -> tuple[str, ...]:
        """Return the collective backends to use, best first: the vendor's, then gloo through the CPU."""
        if not dist.is_available():
            return ()
        own = (self.collective_backend,) if self.own_backend() else ()
        return (*own, "gloo") if dist.is_gloo_available() else own

    def own_backend(self) -> Support:
        """Tell whether the vendor's collective backend can be used, importing what registers it."""
        if not self.available():
            return self.available()
        if self.collective_package:
            try:
                importlib.import_module(self.collective_package)
            except _LOAD_FAULTS as error:
                return Support(False, f"{self.collective_package} does not load: {error}")
        if not dist.is_backend_available(self.collective_backend):
            return Support(
                False, f"the backend {self.collective_backend!r} is not registered with torch.distributed"
            )
        return YES

    def supports(self, capability: str) -> Support:
        """Tell whether it can do ``capability``; an unknown one, or absent hardware, is answered no."""
        question = getattr(self, f"can_{capability}", None)
        if question is None:
            return Support(False, f"{self.name} was never asked for {capability!r}; it counts as missing")
        answer: Support = question() if self.available() else self.available()
        return answer

    def can_fp16(self) -> Support:
        """Compute in float16."""
        return YES

    def can_bf16(self) -> Support:
        """Compute in bfloat16."""
        probe = getattr(self.module, "is_bf16_supported", None)
        if probe is None or probe():
            return YES
        return Support(False, f"this {self.title} has no bfloat16")

    def can_fp8(self) -> Support:
        """Multiply matrices in 8-bit floats."""
        return Support(False, f"no fp8 recipe has been shown to work on {self.title}")

    def can_float64(self) -> Support:
        """Compute in float64."""
        return YES

    def can_pin_memory(self) -> Support:
        """Copy from page-locked host memory."""
        return YES

    def can_scaler(self) -> Support:
        """Scale gradients for float16 training."""
        return YES

    def can_sharing(self) -> Support:
        """Let several processes of one machine use the same device."""
        return Support(False, f"each process takes a {self.title} of its own")

    def can_distributed(self) -> Support:
        """Let ranks exchange tensors."""
        return YES if self.backends() else self.own_backend()

    def synchronize(self) -> None:
        """Wait until the current device has finished its queued work."""
        self.module.synchronize()


def too_many(name: str, processes: int, count: int, variable: str) -> CapabilityError:
    """Return the error for more processes on a machine than devices it offers."""
    shown = ""
    if variable:
        value = os.environ.get(variable)
        shown = f"{variable}={value!r}" if value is not None else f"{variable} is not set"
    return CapabilityError(
        f"{processes} processes on this machine need a {name} device each, but {count} "
        f"{'is' if count == 1 else 'are'} visible",
        where=shown,
        fix=f"start at most {count} processes here, make more devices visible, or run on the CPU (cpu=True)",
    )


__all__ = ["YES", "TorchDevice", "TorchMemory", "TorchRNG", "too_many"]
