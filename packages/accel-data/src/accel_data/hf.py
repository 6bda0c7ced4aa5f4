"""What can be told about data sets of Hugging Face ``datasets``, which is never imported for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from zlib import crc32

_MOST = 128
"""Data sets in one stream that are described each."""

Part = tuple[str, bool]
"""A description of what a rank holds, equal where ranks hold the same; and whether it can be all of it."""


def is_hf(dataset: object) -> bool:
    """Tell whether ``dataset`` is one of Hugging Face ``datasets``, map-style or iterable."""
    return any(cls.__module__.partition(".")[0] == "datasets" for cls in type(dataset).__mro__)


def node(dataset: Any) -> tuple[int, int] | None:
    """Return ``(world, rank)`` of a stream after ``split_dataset_by_node``; None where it was not split."""
    split = getattr(dataset, "_distributed", None) if is_hf(dataset) else None
    return None if split is None else (int(split.world_size), int(split.rank))


def part(dataset: Any) -> Part | None:
    """Describe which part of its source ``dataset`` holds; None when it is not one of ``datasets``.

    A stream is described by its data files or generator arguments, map-style data by three of its rows,
    read without decoding.
    """
    if not is_hf(dataset):
        return None
    source = getattr(dataset, "_ex_iterable", None)
    if source is not None:
        return " ".join(_sources(source, 8)), False
    indices = getattr(dataset, "_indices", None)
    table = getattr(dataset, "_data", None)
    every = indices is not None and table is not None and indices.num_rows >= table.num_rows
    try:
        count = len(dataset)
        raw = dataset.with_format("arrow")
        rows = [repr(raw[place].to_pydict()) for place in (0, count // 2, count - 1)] if count else []
    except Exception:  # noqa: BLE001 - a description is not worth an error: the audit looks at what is read
        return None
    return f"{count} rows {[crc32(row.encode()) for row in rows]}", every


def split_by_node(dataset: Any, world: int, rank: int) -> Any:
    """Return rank ``rank``'s files of the stream, or None when they cannot be dealt out evenly."""
    shards = getattr(dataset, "num_shards", None)
    if not isinstance(shards, int) or shards < world or shards % world:
        return None
    from datasets.distributed import split_dataset_by_node  # type: ignore[import-not-found,import-untyped,unused-ignore]

    return split_dataset_by_node(dataset, rank=rank, world_size=world)


def shuffle_state(dataset: Any) -> str | None:
    """Return the state of the generators that shuffle a stream; None when nothing shuffles it."""
    steps = _walk(getattr(dataset, "_ex_iterable", None), 12)
    bits = [getattr(getattr(step, "generator", None), "bit_generator", None) for step in steps]
    return " ".join(repr(bit.state) for bit in bits if bit is not None) or None


def keeps_place(dataset: Any) -> bool:
    """Tell whether a stream goes on exactly where its state says.

    Not with a shuffle buffer, whose samples are lost, nor after ``map`` or ``filter`` by batches.
    """
    steps = list(_walk(getattr(dataset, "_ex_iterable", None), 12))
    return bool(steps) and not any(
        "Shuffled" in type(step).__name__ or getattr(step, "batched", False) for step in steps
    )


def forget_place(dataset: Any) -> None:
    """Let the next iteration of a stream begin at its start, whatever state was loaded."""
    if is_hf(dataset):
        dataset.load_state_dict(None)


def _walk(source: Any, depth: int) -> Iterator[Any]:
    if source is None or not depth:
        return
    yield source
    children: Iterable[Any] = getattr(source, "ex_iterables", None) or [getattr(source, "ex_iterable", None)]
    for child in children:
        yield from _walk(child, depth - 1)


def _sources(source: Any, depth: int) -> Iterator[str]:
    for step in _walk(source, depth):
        if isinstance(arguments := getattr(step, "kwargs", None), dict):
            for name, value in arguments.items():
                yield f"{name}={_describe(value)}"


def _describe(value: Any) -> str:
    """Describe an argument by what is alike on all ranks that hold the same; addresses are not."""
    if isinstance(value, (list, tuple)) and len(value) > _MOST and is_hf(value[0]):
        return f"[{len(value)}]"  # each of them would be opened
    if isinstance(value, (list, tuple)):
        # Sorted: a shuffle moves files about, and does not change which of them a rank has.
        return f"[{len(value)}: {crc32(repr(sorted(map(_describe, value))).encode())}]"
    if isinstance(value, (str, int, float, bool, type(None))):
        return repr(value)
    # Not the fingerprint of datasets: it is drawn at random where a transform cannot be hashed.
    held = part(value)
    return type(value).__name__ if held is None else held[0]


__all__ = ["Part", "forget_place", "is_hf", "keeps_place", "node", "part", "shuffle_state", "split_by_node"]
