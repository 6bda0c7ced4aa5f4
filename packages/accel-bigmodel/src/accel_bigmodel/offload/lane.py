"""The order of blocks, and the way of the next one's tensors while one computes."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, Protocol

import torch

from .cold import Cold
from .layout import Layout
from .order import Order
from .staging import Staging
from .transfer import Transfer
from .worker import Worker

STAGING = 128 << 20
"""Bytes of pinned memory that transfers go through, by default."""
_AHEAD = 512 << 20
_MORE = 1.25
"""Several blocks are ahead up to so many bytes, and up to the largest block and a little more.

Layers are often blocks of their own, and a small one between two large ones must not hold up the second.
"""
_STEPS = 8
"""Blocks that are looked at for one that is used."""
_PATIENCE = 64
"""Blocks after which it is tried again to move one ahead, when there was no room for it."""


class Cargo(Protocol):
    """What a lane moves: a block. ``number`` is what `Lane.add` returned."""

    number: int

    def wanted(self) -> tuple[int, ...]:
        """Return the numbers of the tensors that have to be moved; empty while they are in use."""

    def layout(self, indices: tuple[int, ...]) -> Layout:
        """Return how they lie together."""

    def fetch(self, indices: tuple[int, ...]) -> Sequence[torch.Tensor]:
        """Return their values on the CPU."""

    def stamps(self, indices: tuple[int, ...]) -> list[object]:
        """Return something that changes when the values do, as far as that can be known."""

    def ask_ahead(self) -> None:
        """Ask the system to read their pages."""


class Lane:
    """Move the blocks of one model to ``device``, each while the one before computes.

    The order is learnt: at first it is that in which blocks were made. On an accelerator, copies run on a
    stream of their own, through ``limit_bytes`` of pinned memory at most, and one block is ahead, or several
    small ones: what is used and what is ahead is all that lies on the device. Where tensors are used as they
    lie in files, the pages of the next block are asked for while the system has to read them.

    ``ahead``: blocks that were there in time. ``late``: those that had to be waited for from the start.
    """

    def __init__(self, device: torch.device, limit_bytes: int = STAGING) -> None:
        self.device = device
        self.limit_bytes = limit_bytes
        self.ahead = self.late = 0
        self._blocks: list[weakref.ref[Cargo]] = []
        self._order = Order()
        self._lock = threading.Lock()
        self._worker = Worker(f"weights to {device}")
        self._staging = Staging(limit_bytes)
        self._side: torch.Stream | None = None
        self._pending: deque[tuple[Cargo, Transfer | None]] = deque()
        self._largest = 0
        self._wait_until = 0
        self._cold = Cold()
        # A thread that still copies must not be met by the end of the interpreter.
        self._stop = weakref.finalize(self, self._worker.stop)

    @cached_property
    def streams(self) -> bool:
        """Tell whether the device has streams to move blocks on."""
        here = torch.accelerator.current_accelerator()
        if here is None or here.type != self.device.type:
            return False
        with suppress(RuntimeError, NotImplementedError):
            self._side = torch.Stream(device=self.device)
        return self._side is not None

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of a model has one lane of its own, which its blocks join when they are used.
        return Lane, (self.device, self.limit_bytes)

    def add(self, block: Cargo) -> int:
        """Let ``block`` be one of the blocks that are moved; return its number."""
        with self._lock:
            self._blocks.append(weakref.ref(block))
            return len(self._blocks) - 1

    def take(self, block: Cargo) -> Transfer | None:
        """Return the transfer of ``block``, begun now unless it was ahead, and begin those of the next ones.

        None when nothing has to be moved.
        """
        with self._lock:
            self._order.saw(block.number)
            transfer = self._claim(block) or self._begin(block)
            self._go_ahead(block)
        return transfer

    def passing(self, block: Cargo) -> None:
        """Note that ``block`` is used where it lies; ask for the pages of the next one."""
        with self._lock:
            self._order.saw(block.number)
            if not self._cold.look():
                return
            follower = self._follower()
        if follower is not None:
            self._worker.submit(partial(_ask, weakref.ref(follower)))

    def drop(self) -> None:
        """Give back the memory of what is ahead."""
        with self._lock:
            self._discard(len(self._pending))

    def _follower(self, ahead: tuple[int, ...] = ()) -> Cargo | None:
        guess = self._order.guess(ahead)
        if guess is None:
            # The order in which they were made; passes that end here may be the last.
            guess = (ahead[-1] if ahead else self._order.last) + 1
        return self._blocks[guess]() if guess < len(self._blocks) else None

    def _claim(self, block: Cargo) -> Transfer | None:
        place = next((place for place, (each, _) in enumerate(self._pending) if each is block), None)
        # What was passed over is not going to be used now.
        self._discard(len(self._pending) if place is None else place)
        if place is None:
            return None
        _, transfer = self._pending.popleft()
        if transfer is None or block.stamps(transfer.indices) == transfer.stamps:
            self.ahead += transfer is not None
            return transfer
        transfer.give_up()
        return None

    def _discard(self, count: int) -> None:
        for _ in range(count):
            _, transfer = self._pending.popleft()
            if transfer is not None:
                transfer.give_up()

    def _go_ahead(self, block: Cargo) -> None:
        """Begin the transfers that follow, as far as there may be room."""
        for _ in range(_STEPS):
            if self._wait_until > self.ahead + self.late:
                return
            waiting = [each.layout.size for _, each in self._pending if each is not None]
            follower = self._follower(tuple(each.number for each, _ in self._pending))
            if follower is None or follower is block or any(each is follower for each, _ in self._pending):
                return
            try:
                size = self._size(follower)
                if waiting and sum(waiting) + size > min(_AHEAD, _MORE * self._largest):
                    return
                self._pending.append((follower, self._made(follower)))
            except torch.OutOfMemoryError:
                self._wait_until = self.ahead + self.late + _PATIENCE
            except Exception:  # noqa: BLE001 - said when the block is used; it may never be
                return
            if len(self._pending) > _STEPS:
                return

    def _size(self, block: Cargo) -> int:
        indices = block.wanted()
        return block.layout(indices).size if indices else 0

    def _begin(self, block: Cargo) -> Transfer | None:
        try:
            transfer = self._made(block)
        except torch.OutOfMemoryError:
            if not self._pending:
                raise
            self._discard(len(self._pending))
            transfer = self._made(block)
        self.late += transfer is not None
        return transfer

    def _made(self, block: Cargo) -> Transfer | None:
        indices = block.wanted()
        if not indices:
            return None
        layout, stamps = block.layout(indices), block.stamps(indices)
        self._largest = max(self._largest, layout.size)
        # Made inside torch.inference_mode, tensors could never be used outside of it.
        with torch.inference_mode(mode=False), torch.no_grad():
            memory = torch.empty(layout.size, dtype=torch.uint8, device=self.device)
        stream = torch.accelerator.current_stream(self.device)
        transfer = Transfer(indices, layout, block.fetch, memory, stream, stamps)
        assert self._side is not None
        self._worker.submit(partial(transfer.run, self._side, self._staging))
        return transfer


def _ask(block: Callable[[], Cargo | None]) -> None:
    found = block()
    if found is not None:
        with suppress(Exception):
            found.ask_ahead()


__all__ = ["STAGING", "Cargo", "Lane"]
