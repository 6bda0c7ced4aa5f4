"""Cutting, joining and sending nested batches."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from accel_core.errors import DataError
from accel_core.nested import first_leaf, is_namedtuple, map_nested, rebuild_mapping, rebuild_sequence


class _Slot(NamedTuple):
    """Where a tensor lies in the buffer that carries all tensors of a round."""

    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class _Sealed:
    """Keeps a slot, which is a tuple, one leaf."""

    __slots__ = ("slot",)

    def __init__(self, slot: _Slot) -> None:
        self.slot = slot


def _is_rows(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0


def rows(batch: Any) -> int:
    """Return the number of samples: the first dimension of the first tensor.

    Raises:
        DataError: the batch holds no tensor with a dimension.
    """
    tensor = first_leaf(batch, _is_rows)
    if tensor is None:
        raise DataError(
            f"a batch of class {type(batch).__name__} holds no tensor, so it cannot be counted or cut",
            where="DataLoaderDispatcher",
            fix="return tensors from collate_fn, or use dispatch_batches=False",
        )
    return int(tensor.shape[0])


def _is_column(data: Any, count: int) -> bool:
    """Tell whether ``data`` is a plain sequence with one entry that is no container for each sample."""
    return (
        isinstance(data, (list, tuple))
        and not is_namedtuple(data)
        and len(data) == count
        and not any(isinstance(item, (torch.Tensor, list, tuple, Mapping)) for item in data)
    )


def slice_batch(data: Any, part: slice, count: int) -> Any:
    """Return the samples ``part`` of a batch of ``count``: tensors and columns are cut, other leaves stay."""
    if _is_rows(data):
        return data[part]
    if _is_column(data, count):
        return data[part]
    if isinstance(data, (list, tuple)):
        return rebuild_sequence(data, (slice_batch(item, part, count) for item in data))
    if isinstance(data, Mapping):
        return rebuild_mapping(data, {key: slice_batch(item, part, count) for key, item in data.items()})
    return data


def join_batches(batches: Sequence[Any], counts: Sequence[int]) -> Any:
    """Return one batch with the samples of all ``batches`` in order; leaves without samples are the first's.

    Raises:
        DataError: tensors whose other dimensions differ.
    """
    head = batches[0]
    if len(batches) == 1:
        return head
    if _is_rows(head):
        try:
            return torch.cat(list(batches))
        except (RuntimeError, TypeError) as error:
            raise DataError(
                f"batches of shapes {[tuple(item.shape) for item in batches]} cannot be joined",
                where="DataLoaderDispatcher, completing the last round",
                fix="pad samples to one shape in collate_fn, or use drop_last=True or even_batches=False",
            ) from error
    if all(_is_column(item, count) for item, count in zip(batches, counts, strict=True)):
        return type(head)(entry for item in batches for entry in item)
    if isinstance(head, (list, tuple)):
        return rebuild_sequence(head, (join_batches(items, counts) for items in zip(*batches, strict=True)))
    if isinstance(head, Mapping):
        return rebuild_mapping(
            head, {key: join_batches([item[key] for item in batches], counts) for key in head}
        )
    return head


def fill_from(pool: Sequence[Any], counts: Sequence[int], sizes: Sequence[int]) -> Iterator[Any]:
    """Yield batches of ``sizes`` samples, taken from the batches of ``pool`` in order, again and again."""
    place, offset = 0, 0
    for size in sizes:
        pieces: list[Any] = []
        taken: list[int] = []
        while sum(taken) < size:
            count = min(size - sum(taken), counts[place] - offset)
            pieces.append(slice_batch(pool[place], slice(offset, offset + count), counts[place]))
            taken.append(count)
            offset += count
            if offset == counts[place]:
                place, offset = (place + 1) % len(pool), 0
        yield join_batches(pieces, taken)


class Parcel(NamedTuple):
    """Batches without their tensors, and the bytes that the tensors take."""

    outlines: list[bytes]
    """Pickled one by one: a rank reads its own only."""
    size: int


def pack(batches: Sequence[Any]) -> tuple[Parcel, torch.Tensor]:
    """Return the outlines of ``batches`` and one flat buffer with the bytes of all their tensors."""
    pieces: list[torch.Tensor] = []
    at = 0

    def take(leaf: Any) -> Any:
        nonlocal at
        if not isinstance(leaf, torch.Tensor):
            return leaf
        data = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        slot = _Slot(at, at + data.numel(), tuple(leaf.shape), leaf.dtype)
        pieces.append(data)
        at = slot.stop
        return _Sealed(slot)

    outlines = [pickle.dumps(map_nested(take, batch)) for batch in batches]
    buffer = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.uint8)
    return Parcel(outlines, at), buffer


def unpack(outline: bytes, buffer: torch.Tensor) -> Any:
    """Return the batch of ``outline``; its tensors are copies, so the buffer can go."""

    def give(leaf: Any) -> Any:
        if not isinstance(leaf, _Sealed):
            return leaf
        slot = leaf.slot
        # A copy starts at an address that suits every dtype; a view of the buffer may not.
        return buffer[slot.start : slot.stop].clone().view(slot.dtype).reshape(slot.shape)

    return map_nested(give, pickle.loads(outline))  # noqa: S301 - from rank 0 of our own group


__all__ = ["Parcel", "fill_from", "join_batches", "pack", "rows", "slice_batch", "unpack"]
