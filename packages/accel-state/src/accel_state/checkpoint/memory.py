"""Memory of the host that holds copies of tensors, kept from one copy to the next."""

from __future__ import annotations

import torch

Key = tuple[str, str]


class HostMemory:
    """Tensors on the CPU by key, handed out again as long as they fit.

    Memory that a process gets from the system is slow when it is first written to, several times
    slower than the copy itself. So it is kept, and only what a later copy had no use for is let go.
    """

    def __init__(self) -> None:
        self._kept: dict[Key, torch.Tensor] = {}
        self._used: set[Key] = set()
        self._pins = True
        self.lease = 0
        """How often ``start`` was called: who remembers it knows whether the memory is still his."""

    @property
    def nbytes(self) -> int:
        """How many bytes are kept."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._kept.values())

    def start(self) -> int:
        """Take everything for unused, and return the new lease: whoever has an older one has no memory."""
        self._used.clear()
        self.lease += 1
        return self.lease

    def take(self, key: Key, like: torch.Tensor) -> torch.Tensor:
        """Return a contiguous tensor of the shape and dtype of ``like`` with any values.

        For tensors of a device it is in memory that the device copies into by itself (pinned), where
        the device has such. Raises RuntimeError where there is not enough memory.
        """
        self._used.add(key)
        found = self._kept.get(key)
        pinned = like.device.type != "cpu"
        if found is None or found.shape != like.shape or found.dtype != like.dtype:
            # The old one first: there may not be room for both.
            found = None
            self._kept.pop(key, None)
            self._kept[key] = found = self._new(like, pinned)
        return found

    def end(self) -> None:
        """Let go of what was not handed out since ``start``."""
        for key in self._kept.keys() - self._used:
            del self._kept[key]

    def clear(self) -> None:
        """Let go of everything."""
        self._kept.clear()
        self._used.clear()

    def _new(self, like: torch.Tensor, pinned: bool) -> torch.Tensor:
        # Memory made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            if pinned and self._pins:
                try:
                    return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=True)
                except (RuntimeError, NotImplementedError):
                    # This kind of device has none, or there is no more: the copy is slower, and as good.
                    self._pins = False
            return torch.empty(like.shape, dtype=like.dtype, device="cpu")


__all__ = ["HostMemory", "Key"]
