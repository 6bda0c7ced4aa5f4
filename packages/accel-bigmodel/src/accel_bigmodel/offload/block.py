"""The tensors of one module: placeholders between forwards, values on the execution device during them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from .layout import Layout, lay_out
from .slot import Slot, Way, like
from .tied import TiedTensors

if TYPE_CHECKING:
    from .lane import Lane


class OffloadedBlock:
    """The tensors ``names`` of ``module``, whose values are ``source[prefix + name]``, used on ``device``.

    ``names`` are relative to the module, dotted for those of its submodules. ``tied``: what several modules
    share. ``lane``: moves the next block while this one computes.

    `enter` and `leave` are counted, so that several forwards may be under way, in threads too. What a forward
    changes stays changed: values that are used where they lie are written there, others stay in the module.
    So does what somebody puts in the place of a placeholder.
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
        self.number = -1 if lane is None else lane.add(self)
        self._slots = [Slot(module, name, source, prefix, self.tied) for name in names]
        self._inside = 0
        self._lock = threading.RLock()
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self._stream: torch.Stream | None = None
        self._moves = True

    def park(self) -> None:
        """Put placeholders on the meta device in the module."""
        with self._lock:
            for slot in self._slots:
                slot.park(self.tied)

    def enter(self) -> None:
        """Put the values in the module, on the device; only the first of several does.

        Raises CheckpointError when the source does not have a value, torch.OutOfMemoryError when the device
        has no room; the module is as before then.
        """
        with self._lock:
            if self._inside == 0:
                self._place()
            elif self._stream is not None:
                self._join(self._stream)
            self._inside += 1

    def leave(self) -> None:
        """Undo an `enter`; the last of several puts the placeholders back."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stream = None
                for slot in self._slots:
                    slot.leave(self.tied, self.device)

    def restore(self, device: torch.device) -> None:
        """Put the values in the module for good, on ``device``; what is in files is copied into memory.

        The meta device leaves it as it is.
        """
        with self._lock:
            if device.type != "meta":
                for slot in self._slots:
                    slot.restore(self.tied, device)

    def _place(self) -> None:
        lane = self.lane
        arrived: dict[int, torch.Tensor] = {}
        if lane is not None and self._moves and lane.streams:
            arrived = self._arrived(lane)
        elif lane is not None:
            lane.passing(self)
        entered = 0
        try:
            # Placeholders of a class of their own answer slowly.
            with torch._C.DisableTorchFunctionSubclass():
                for number, slot in enumerate(self._slots):
                    slot.enter(self.tied, self.device, arrived.get(number))
                    entered += 1
        except BaseException:
            for slot in self._slots[:entered]:
                slot.leave(self.tied, self.device)
            raise
        if self._moves and lane is not None and lane.streams:
            self._stream = torch.accelerator.current_stream(self.device)
        if self._moves:
            # Known once every tensor was looked at: then nothing is asked that has one answer.
            self._moves = any(slot.way is not Way.IN_PLACE for slot in self._slots)

    def _join(self, stream: torch.Stream) -> None:
        """Let this thread's stream wait for what is there on that of another thread, which came first."""
        here = torch.accelerator.current_stream(self.device)
        if here != stream:
            here.wait_event(stream.record_event())
            for slot in self._slots:
                if slot.placed is not None:
                    # Its memory goes back to the other stream, which knows nothing of this one.
                    slot.placed.record_stream(here)

    def _arrived(self, lane: Lane) -> dict[int, torch.Tensor]:
        transfer = lane.take(self)
        if transfer is None:
            return {}
        values = transfer.arrive()
        if values is None:
            # The source has come to hold other tensors under these names.
            self._layouts.clear()
            transfer = lane.take(self)
            values = None if transfer is None else transfer.arrive()
        if transfer is None or values is None:
            return {}
        return dict(zip(transfer.indices, values, strict=True))

    def wanted(self) -> tuple[int, ...]:
        """Return the numbers of the tensors that have to be moved; empty while they are in use."""
        if self._inside:
            return ()
        return tuple(
            number
            for number, slot in enumerate(self._slots)
            if slot.find_way(self.device) is Way.MOVED
            and slot.waits()
            and not (slot.group is not None and self.tied.held(slot.group, self.device))
        )

    def layout(self, indices: tuple[int, ...]) -> Layout:
        """Return how the tensors ``indices`` lie together on the device."""
        if indices not in self._layouts:
            self._layouts[indices] = lay_out(self.fetch(indices))
        return self._layouts[indices]

    def fetch(self, indices: tuple[int, ...]) -> Sequence[torch.Tensor]:
        """Return the values of the tensors ``indices`` from the source."""
        return [self._slots[number].fetch() for number in indices]

    def stamps(self, indices: tuple[int, ...]) -> list[object]:
        """Return something that changes when the values do, as far as that can be known."""
        return [self._slots[number].stamp() for number in indices]

    def ask_ahead(self) -> None:
        """Ask the system to read the pages of the values."""
        for source in getattr(self.source, "maps", [self.source]):
            ask = getattr(source, "will_need", None)
            if ask is not None:
                ask([slot.spelled for slot in self._slots])


__all__ = ["OffloadedBlock", "like"]
