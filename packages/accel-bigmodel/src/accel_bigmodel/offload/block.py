"""The tensors of one module: placeholders between forwards, values on the execution device during them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from accel_core.errors import CheckpointError

from .tied import TiedTensors

if TYPE_CHECKING:
    from .lane import Lane


def like(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """Return ``data`` as ``tensor`` is: its class, its ``requires_grad``, its attributes."""
    made: Any
    if not isinstance(tensor, nn.Parameter):
        made = data
    elif type(data) in (torch.Tensor, nn.Parameter):
        # What a class does when it is called (bitsandbytes quantizes) was done to these values already.
        made = torch.Tensor._make_subclass(type(tensor), data.detach(), tensor.requires_grad)
    else:
        made = nn.Parameter(data.detach(), requires_grad=tensor.requires_grad)
    if made is not tensor and tensor.__dict__:
        made.__dict__.update(tensor.__dict__)
    return made  # type: ignore[no-any-return]


class _Slot:
    """Where a module keeps one of its tensors."""

    __slots__ = ("group", "key", "name", "placeholder", "spelled", "table")

    def __init__(
        self, module: nn.Module, name: str, source: Mapping[str, torch.Tensor], prefix: str, tied: TiedTensors
    ) -> None:
        path, _, self.key = name.rpartition(".")
        owner = module.get_submodule(path)
        # The tables themselves: assigning to a module looks through all of them, every time.
        self.table: dict[str, Any] = owner._parameters if self.key in owner._parameters else owner._buffers
        self.name = prefix + name
        self.group = tied.group(self.name)
        self.spelled = tied.spelled(self.name, source)
        self.placeholder: torch.Tensor | None = None


class OffloadedBlock:
    """The tensors ``names`` of ``module``, whose values are ``source[prefix + name]``, used on ``device``.

    ``names`` are relative to the module, dotted for those of its submodules. ``tied``: what several modules
    share. ``lane``: moves the next block while this one computes.

    `enter` and `leave` are counted, so that several forwards may be under way, in threads too.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Iterable[str],
        source: Mapping[str, torch.Tensor],
        prefix: str,
        device: torch.device,
        *,
        tied: TiedTensors | None = None,
        lane: Lane | None = None,
    ) -> None:
        self.module = module
        self.source = source
        self.prefix = prefix
        self.device = device
        self.tied = tied or TiedTensors()
        self.lane = lane
        self._slots = [_Slot(module, name, source, prefix, self.tied) for name in names]
        self._inside = 0
        self._lock = threading.RLock()

    def park(self) -> None:
        """Put placeholders on the meta device in the module."""
        with self._lock:
            for slot in self._slots:
                if slot.placeholder is None:
                    self._make_placeholder(slot)
                slot.table[slot.key] = slot.placeholder

    def _make_placeholder(self, slot: _Slot) -> None:
        now = slot.table[slot.key]

        def make() -> torch.Tensor:
            if now.device.type == "meta":
                return now  # type: ignore[no-any-return]
            return like(now, now.detach().to("meta"))

        slot.placeholder = make() if slot.group is None else self.tied.placeholder(slot.group, make)

    def enter(self) -> None:
        """Put the values in the module, on the device; only the first of several does."""
        with self._lock:
            if self._inside == 0:
                self._place()
            self._inside += 1

    def leave(self) -> None:
        """Undo an `enter`; the last of several puts the placeholders back."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._drop()

    def _place(self) -> None:
        values: list[torch.Tensor] = []
        try:
            for slot in self._slots:
                if slot.group is None:
                    values.append(self._value(slot, self.device))
                else:
                    made = self.tied.acquire(slot.group, self.device, partial(self._value, slot, self.device))
                    values.append(made)
        except BaseException:
            self._release(len(values))
            raise
        for slot, value in zip(self._slots, values, strict=True):
            slot.table[slot.key] = value

    def _drop(self) -> None:
        for slot in self._slots:
            slot.table[slot.key] = slot.placeholder
        self._release(len(self._slots))

    def _release(self, count: int) -> None:
        for slot in self._slots[:count]:
            if slot.group is not None:
                self.tied.release(slot.group, self.device)

    def _value(self, slot: _Slot, device: torch.device) -> torch.Tensor:
        # Made inside torch.inference_mode, tensors could never be used outside of it.
        with torch.inference_mode(mode=False), torch.no_grad():
            try:
                found = self.source[slot.spelled]
            except KeyError as error:
                raise CheckpointError(
                    f"The offloaded weights have no {slot.spelled!r}",
                    where=type(self.module).__name__,
                    fix="offload the model again, from weights that have it",
                ) from error
            assert slot.placeholder is not None
            return like(slot.placeholder, found.to(device))

    def restore(self, device: torch.device) -> None:
        """Put the values in the module for good, in memory of their own on ``device``."""
        with self._lock:
            if device.type == "meta":
                return
            for slot in self._slots:
                if slot.group is None:
                    slot.table[slot.key] = self._copy(slot, device)
                else:
                    make = partial(self._copy, slot, device)
                    slot.table[slot.key] = self.tied.restored(slot.group, device, make)

    def _copy(self, slot: _Slot, device: torch.device) -> torch.Tensor:
        value = self._value(slot, device)
        # A mapped file may be overwritten by whoever saves the model next.
        return like(value, value.detach().clone()) if device.type == "cpu" else value


__all__ = ["OffloadedBlock", "like"]
