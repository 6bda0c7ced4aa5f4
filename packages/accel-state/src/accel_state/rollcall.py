"""One small exchange before a big one: do all ranks mean the same? Small values travel with the question.

gloo ends the process when the sizes of two ranks differ, so the ranks compare a digest of their calls
first, on a channel of their own: a call that only some ranks make meets no other traffic there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from .calls import Call, mismatch

if TYPE_CHECKING:
    from .collectives import TorchCollectives

FRAME = 1024
"""Bytes of one rank's part."""
_HEAD = 24
_TOO_LONG = 2**64 - 1
ROOM = FRAME - _HEAD
"""The longest value, in bytes, that travels with the question."""


class RollCall:
    """Compare the calls of the ranks of one group; opened by the first call."""

    def __init__(self, group: TorchCollectives, open_channel: Callable[[], Any]) -> None:
        self._group = group
        self._open = open_channel
        self._channel: Any = None
        self.count = 0
        """How many were begun."""

    def exchange(self, call: Call, value: bytes) -> list[memoryview] | None:
        """Return the values of all ranks, or None when one is longer than ``ROOM``.

        Raises DistributedOperationException on every rank when the calls differ, CollectiveError
        when a rank does not come in time.
        """
        run, world = self._group.run, self._group.world_size
        self.open(call)
        self.count += 1
        fits = len(value) <= ROOM
        own = bytearray(FRAME)
        own[:16] = call.digest()
        own[16:_HEAD] = (len(value) if fits else _TOO_LONG).to_bytes(8, "little")
        if fits:
            own[_HEAD : _HEAD + len(value)] = value
        received = bytearray(world * FRAME)
        run(call, lambda: self._group.gather_bytes(_view(received), _view(own), self._channel))
        everybody = [memoryview(received)[start : start + FRAME] for start in range(0, len(received), FRAME)]
        if any(frame[:16] != own[:16] for frame in everybody):
            texts: list[Any] = [None] * world
            run(call, lambda: dist.all_gather_object(texts, call.to_text(), group=self._channel))
            raise mismatch([Call.from_text(text) for text in texts], self._group.rank)
        lengths = [int.from_bytes(frame[16:_HEAD], "little") for frame in everybody]
        if _TOO_LONG in lengths:
            return None
        return [frame[_HEAD : _HEAD + length] for frame, length in zip(everybody, lengths, strict=True)]

    def open(self, call: Call | None = None) -> None:
        """Make the channel, where there is none yet. Collective; ``call`` is named when ranks do not come."""
        if self._channel is None:
            self._channel = self._group.run(call or Call("open"), self._open)

    def close(self) -> None:
        """Let go of the channel."""
        self._channel = None


def packed(tensors: Sequence[torch.Tensor]) -> bytes:
    """Return the bytes of small ``tensors`` in a row; too many bytes to send when they are not small."""
    length = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    if length > ROOM:
        # Only the length counts: it says that the tensors must go on their own.
        return bytes(FRAME)
    together = bytearray(length)
    start = 0
    for tensor in tensors:
        end = start + tensor.numel() * tensor.itemsize
        if end > start:
            flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            _view(together)[start:end].copy_(flat)
        start = end
    return bytes(together)


def stacked(values: Sequence[memoryview], tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return, for each of our ``tensors``, those of all ranks in their bytes: ``[world_size, *shape]``."""
    rows = [tensor.detach()[None] for tensor in tensors]
    return list(joined(values, rows, [[1] * len(values)] * len(rows)))


def joined(
    values: Sequence[bytes | memoryview], tensors: Sequence[torch.Tensor], counts: Iterable[Sequence[int]]
) -> Iterator[torch.Tensor]:
    """Yield, for each of our ``tensors``, the rows of all ranks in their bytes, by rank.

    ``counts``: for each tensor, how many rows each rank has.
    """
    starts = [0] * len(values)
    for tensor, rows in zip(tensors, counts, strict=True):
        width = tensor.shape[1:].numel() * tensor.itemsize
        ends = [start + count * width for start, count in zip(starts, rows, strict=True)]
        raw = bytearray().join(map(_cut, values, starts, ends))
        out = tensor.new_empty((sum(rows), *tensor.shape[1:])).detach()
        if raw:
            out.view(-1).view(torch.uint8).copy_(_view(raw))
        yield out
        starts = ends


def _cut(value: bytes | memoryview, start: int, end: int) -> bytes | memoryview:
    return value[start:end]


def _view(buffer: bytearray | memoryview) -> torch.Tensor:
    """Return the buffer itself as a tensor of bytes."""
    return torch.frombuffer(buffer, dtype=torch.uint8)


__all__ = ["FRAME", "ROOM", "RollCall", "joined", "packed", "stacked"]
