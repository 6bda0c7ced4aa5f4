"""Pinned memory on the way to a device: a few buffers that are filled and emptied in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .layout import Layout, as_bytes

_SLOTS = 4
_LEAST = 1 << 16


class Staging:
    """Copy tensors to a device through ``limit`` bytes of pinned memory at most; for one thread.

    While the device takes one buffer, the next is filled. ``pinned`` is False once the system has refused to
    pin memory; copies are plain ones then.
    """

    def __init__(self, limit: int) -> None:
        self._most = max(limit // _SLOTS, 1)
        self._size = 0
        self._buffers: list[tuple[torch.Tensor, torch.Event | None]] = []
        self._turn = 0
        self.pinned = True

    def copy(
        self, values: Sequence[torch.Tensor], layout: Layout, target: torch.Tensor, stream: torch.Stream
    ) -> Iterator[None]:
        """Queue copies of ``values`` to ``target`` on ``stream``, which is this thread's; yield after each.

        ``target`` are the bytes of ``layout`` on the device.
        """
        if all(value.is_pinned() for value in values) or not self._fit(layout.size):
            for value, piece in zip(values, layout.pieces, strict=True):
                target[piece.begin : piece.end].copy_(as_bytes(value), non_blocking=True)
                yield
            return
        sources = [as_bytes(value) for value in values]
        for begin in range(0, layout.size, self._size):
            end = min(begin + self._size, layout.size)
            self._turn = (self._turn + 1) % len(self._buffers)
            buffer, taken = self._buffers[self._turn]
            if taken is not None:
                taken.synchronize()
            for source, piece in zip(sources, layout.pieces, strict=True):
                first, last = max(begin, piece.begin), min(end, piece.end)
                if first < last:
                    part = source[first - piece.begin : last - piece.begin]
                    buffer[first - begin : last - begin].copy_(part)
            target[begin:end].copy_(buffer[: end - begin], non_blocking=True)
            self._buffers[self._turn] = (buffer, stream.record_event())
            yield

    def _fit(self, size: int) -> bool:
        """Make buffers that suit transfers of ``size`` bytes; tell whether there are any."""
        wanted = min(self._most, max(_LEAST, 1 << (size - 1).bit_length() if size else 1))
        if self.pinned and wanted > self._size:
            for _, taken in self._buffers:
                if taken is not None:
                    taken.synchronize()
            self._buffers.clear()
            try:
                fresh = [torch.empty(wanted, dtype=torch.uint8, pin_memory=True) for _ in range(_SLOTS)]
            except RuntimeError:
                # Limits of locked memory, or a device that has no such thing.
                self.pinned = False
            else:
                self._buffers = [(buffer, None) for buffer in fresh]
                self._size = wanted
        return self.pinned


__all__ = ["Staging"]
