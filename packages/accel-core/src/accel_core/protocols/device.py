"""What accel asks of one kind of hardware."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Support:
    """The answer to "can you?": yes, or no with the reason that the user is shown."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Bytes of one device: what is free, what there is, what this process holds and held at most."""

    free: int
    total: int
    allocated: int = 0
    peak: int = 0


@runtime_checkable
class DeviceRNG(Protocol):
    """The random number generator of one kind of hardware."""

    def seed(self, seed: int) -> None:
        """Seed the generators of every device of this kind in this process."""

    def get_state(self) -> torch.Tensor:
        """Return the state of the current device's generator: a uint8 tensor on the CPU."""
        ...

    def set_state(self, state: torch.Tensor) -> None:
        """Restore what ``get_state`` returned."""


@runtime_checkable
class DeviceMemory(Protocol):
    """The memory of one kind of hardware."""

    def info(self, index: int = 0) -> MemoryInfo:
        """Return the memory of device ``index``, in bytes."""
        ...

    def empty_cache(self) -> None:
        """Give cached, unused memory back to the system."""

    def reset_peak(self, index: int = 0) -> None:
        """Start a new measurement of ``MemoryInfo.peak``."""


@runtime_checkable
class Device(Protocol):
    """One kind of hardware: is it there, how much of it, and what can it do.

    Creating an instance must not import a vendor package nor touch a driver; ``available`` is the
    first method that may look. All others may assume that ``available`` said yes.
    """

    name: str
    """The torch device type: ``"cpu"``, ``"cuda"``, ..."""
    distributed_label: str
    """The value of `accel_core.enums.DistributedType` shown for several processes on it."""
    rng: DeviceRNG
    memory: DeviceMemory

    def available(self) -> Support:
        """Tell whether the hardware and its software are usable in this process."""
        ...

    def count(self) -> int:
        """Return how many devices of this kind this process can see."""
        ...

    def select(self, local_rank: int) -> torch.device:
        """Make the device of ``local_rank`` the current one and return it."""
        ...

    def backends(self) -> tuple[str, ...]:
        """Return the collective backends to use, best first; empty when ranks cannot talk."""
        ...

    def supports(self, capability: str) -> Support:
        """Tell whether it can do ``capability``, and why not.

        ``"fp16"``, ``"bf16"``, ``"fp8"``, ``"float64"``, ``"pin_memory"`` and ``"scaler"`` say what it says.

        ``"sharing"``: several processes may use one device. ``"distributed"``: processes can talk; the
        reason is shown when ``backends`` is empty.

        An unknown capability is answered no, with the reason: a new capability must never read as a yes.
        """
        ...

    def synchronize(self) -> None:
        """Wait until the current device has finished its queued work."""
