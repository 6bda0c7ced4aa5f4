"""The way of one block's tensors to the device, on a stream of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch

from .layout import Layout
from .staging import Staging


class Transfer:
    """Tensors on their way to ``memory``, allocated on ``stream``, on which they are going to be used.

    The copies wait for ``begin``, an event of that stream after which nothing uses the memory any more. Who
    uses the tensors calls `arrive` first. ``fetch`` gives the values; it is called where the copies are made.
    ``stamps`` tell values that have changed since then from those that have not.
    """

    def __init__(
        self,
        indices: tuple[int, ...],
        layout: Layout,
        fetch: Callable[[tuple[int, ...]], Sequence[torch.Tensor]],
        memory: torch.Tensor,
        stream: torch.Stream,
        stamps: Sequence[object] = (),
    ) -> None:
        self.stamps = stamps
        self.indices = indices
        self.layout = layout
        self.stream = stream
        self._fetch = fetch
        self._memory = memory
        self._begin = stream.record_event()
        self._ready: torch.Event | None = None
        self._queued = threading.Event()
        self._error: BaseException | None = None
        self._cancelled = threading.Event()
        self.stale = False

    def run(self, side: torch.Stream, staging: Staging) -> None:
        """Queue the copies on the stream ``side``. Never raises: `arrive` does."""
        try:
            with torch.no_grad():
                torch.accelerator.set_stream(side)
                side.wait_event(self._begin)
                try:
                    self._copy(side, staging)
                finally:
                    # Also of what was begun only: the memory cannot be given back before.
                    self._ready = side.record_event()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
        finally:
            self._queued.set()

    def _copy(self, side: torch.Stream, staging: Staging) -> None:
        if self._cancelled.is_set():
            return
        values = self._fetch(self.indices)
        if not self.layout.holds(values):
            self.stale = True
            return
        for _ in staging.copy(values, self.layout, self._memory, side):
            if self._cancelled.is_set():
                return

    def arrive(self) -> list[torch.Tensor] | None:
        """Let this thread's stream wait for the copies, and return the tensors.

        Raises what went wrong with them; returns None when the source has come to hold others.
        """
        self._queued.wait()
        self._join()
        if self._error is not None:
            raise self._error
        if self.stale:
            return None
        with torch.inference_mode(mode=False):
            return [piece.view(self._memory) for piece in self.layout.pieces]

    def _join(self) -> None:
        """Let this thread's stream wait for the copies."""
        here = torch.accelerator.current_stream(self._memory.device)
        if self._ready is not None:
            here.wait_event(self._ready)
        if here != self.stream:
            # Its memory goes back to the stream that it was taken on, which knows nothing of this one.
            self._memory.record_stream(here)

    def give_up(self) -> None:
        """Stop what is not queued yet, so that the memory can be given back at once."""
        self._cancelled.set()
        self._queued.wait()
        if self._ready is not None:
            self.stream.wait_event(self._ready)


__all__ = ["Transfer"]
