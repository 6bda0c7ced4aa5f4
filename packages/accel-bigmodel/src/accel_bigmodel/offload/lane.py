"""The order of blocks, and the way of the next one's tensors while one computes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Protocol

import torch

from accel_core.errors import AccelError

from .cold import Cold
from .layout import Layout
from .order import Order
from .staging import Staging
from .transfer import Transfer
from .worker import Worker

STAGING = 128 << 20
"""Bytes of pinned memory that transfers go through, by default."""
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
    stream of their own, through ``limit_bytes`` of pinned memory at most, and one block is ahead at most:
    what is used and what is ahead is all that lies on the device. Where tensors are used as they lie in
    files, the pages of the next block are asked for while the system has to read them.

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
        self._pending: tuple[Cargo, Transfer] | None = None
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

    def add(self, block: Cargo) -> int:
        """Let ``block`` be one of the blocks that are moved; return its number."""
        with self._lock:
            self._blocks.append(weakref.ref(block))
            return len(self._blocks) - 1

    def take(self, block: Cargo) -> Transfer | None:
        """Return the transfer of ``block``, begun now unless it was ahead, and begin that of the next one.

        None when nothing has to be moved.
        """
        with self._lock:
            self._order.saw(block.number)
            transfer = self._claim(block) or self._begin(block, needed=True)
            follower = self._follower()
            if self._pending is None and follower is not None and follower is not block:
                self._begin_ahead(follower)
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
            self._discard()

    def _follower(self) -> Cargo | None:
        guess = self._order.guess()
        if guess is None:
            # The order in which they were made; passes that end here may be the last.
            guess = self._order.last + 1
        return self._blocks[guess]() if guess < len(self._blocks) else None

    def _claim(self, block: Cargo) -> Transfer | None:
        if self._pending is None:
            return None
        cargo, transfer = self._pending
        if cargo is not block or block.stamps(transfer.indices) != transfer.stamps:
            self._discard()
            return None
        self._pending = None
        self.ahead += 1
        return transfer

    def _discard(self) -> None:
        if self._pending is not None:
            _, transfer = self._pending
            self._pending = None
            transfer.give_up()

    def _begin_ahead(self, block: Cargo) -> None:
        if self._wait_until > self.ahead + self.late:
            return
        try:
            transfer = self._begin(block, needed=False)
        except torch.OutOfMemoryError:
            self._wait_until = self.ahead + self.late + _PATIENCE
        except AccelError:
            # Said when the block is used; it may never be.
            return
        else:
            if transfer is not None:
                self._pending = (block, transfer)

    def _begin(self, block: Cargo, *, needed: bool) -> Transfer | None:
        indices = block.wanted()
        if not indices:
            return None
        self.late += needed
        layout, stamps = block.layout(indices), block.stamps(indices)
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
