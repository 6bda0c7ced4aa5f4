"""Tensors that several modules use: moved once, and one object for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch


class _Held:
    """A tensor that somebody uses, and the stream on which it is there."""

    __slots__ = ("count", "stream", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.count = 0
        self.stream = _stream(tensor)

    def join(self) -> None:
        """Let this thread's stream wait for the tensor."""
        here = _stream(self.tensor)
        if here is not None and self.stream is not None and here != self.stream:
            here.wait_event(self.stream.record_event())
            self.tensor.record_stream(here)


def _stream(tensor: torch.Tensor) -> torch.Stream | None:
    """Return the stream that this thread uses on the tensor's device; None where there are none."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or accelerator.type != tensor.device.type:
        return None
    return torch.accelerator.current_stream(tensor.device)


class TiedTensors:
    """What modules share of the tensors of each group; ``groups`` are the names that stand for one tensor.

    One for a dispatched model and an execution device. Safe in threads.
    """

    def __init__(self, groups: Iterable[Sequence[str]] = ()) -> None:
        self._groups: dict[str, tuple[str, ...]] = {}
        for group in groups:
            names = tuple(group)
            self._groups.update(dict.fromkeys(names, names))
        self._start()

    def _start(self) -> None:
        self._placeholders: dict[str, torch.Tensor] = {}
        self._here: dict[tuple[str, torch.device], _Held] = {}
        self._kept: dict[str, tuple[torch.Tensor | None, torch.Tensor]] = {}
        self._restored: dict[tuple[str, torch.device], torch.Tensor] = {}
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, tuple[str, ...]]:
        # What a copy of a model shares, its own modules share.
        return self._groups

    def __setstate__(self, groups: dict[str, tuple[str, ...]]) -> None:
        self._groups = groups
        self._start()

    def group(self, name: str) -> str | None:
        """Return the first name of the group that ``name`` is in, or None."""
        names = self._groups.get(name)
        return None if names is None else names[0]

    def spelled(self, name: str, source: Mapping[str, torch.Tensor]) -> str:
        """Return the name under which ``source`` has the tensor: the same for all names of a group."""
        return next((each for each in self._groups.get(name, (name,)) if each in source), name)

    def placeholder(self, group: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the one placeholder of a group."""
        with self._lock:
            if group not in self._placeholders:
                self._placeholders[group] = make()
            return self._placeholders[group]

    def held(self, group: str, device: torch.device) -> bool:
        """Tell whether somebody has the group's tensor on ``device``."""
        return (group, device) in self._here

    def acquire(self, group: str, device: torch.device, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the group's tensor on ``device``, made unless somebody has it; `release` it after use."""
        with self._lock:
            held = self._here.get((group, device))
            if held is None:
                held = self._here[group, device] = _Held(make())
            else:
                held.join()
            held.count += 1
            return held.tensor

    def release(self, group: str, device: torch.device) -> None:
        """Give back what `acquire` returned; the last one drops it."""
        with self._lock:
            held = self._here[group, device]
            held.count -= 1
            if not held.count:
                del self._here[group, device]

    def kept(self, group: str, seen: torch.Tensor | None, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return what all modules use of a tensor where it lies; made anew if not made from ``seen``."""
        with self._lock:
            kept = self._kept.get(group)
            if kept is None or kept[0] is not seen:
                kept = self._kept[group] = (seen, make())
            return kept[1]

    def restored(self, group: str, device: torch.device, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the group's tensor on ``device`` as it stays there for good."""
        with self._lock:
            key = (group, device)
            if key not in self._restored:
                self._restored[key] = make()
            return self._restored[key]


__all__ = ["TiedTensors"]
