"""Cut a collection into one consecutive part per process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accel_core.errors import DataError
from accel_core.nested import is_namedtuple, rebuild_mapping, rebuild_sequence


def part_of(length: int, index: int, count: int, *, padded: bool = False) -> list[int]:
    """Return the positions that part ``index`` of ``count`` holds of ``length`` items.

    Parts are consecutive and differ by at most one item, longer ones first. ``padded``: all parts
    are as long as the longest, filled up with the last position.
    """
    base, longer = divmod(length, count)
    start = index * base + min(index, longer)
    positions = list(range(start, start + base + (index < longer)))
    if padded and length:
        positions += [length - 1] * (base + (longer > 0) - len(positions))
    return positions


def split(inputs: Any, index: int, count: int, *, apply_padding: bool = False) -> Any:
    """Return this process's part of ``inputs``.

    Lists, tuples, tensors, arrays and data sets are cut; of a mapping every value is, and all must
    be equally long. With ``apply_padding`` every process gets equally many items, the surplus being
    copies of the last one.

    Raises DataError for mappings of unequal lengths and for what cannot be cut.
    """
    if count == 1:
        return inputs
    if isinstance(inputs, Mapping):
        _same_length(inputs)
        cut = {key: split(value, index, count, apply_padding=apply_padding) for key, value in inputs.items()}
        return rebuild_mapping(inputs, cut)
    positions = part_of(_length(inputs), index, count, padded=apply_padding)
    return _take(inputs, positions)


def _length(inputs: Any) -> int:
    shape = getattr(inputs, "shape", None)
    if shape is not None and len(shape) == 0:
        raise DataError(
            "A tensor without dimensions cannot be split between processes", fix="pass a list of it"
        )
    if isinstance(inputs, (str, bytes)) or not (
        hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")
    ):
        raise DataError(
            f"An object of class {type(inputs).__name__} cannot be split between processes",
            fix="pass a list, a tuple, a tensor, a mapping of them, or a data set with a length",
        )
    return len(inputs)


def _take(inputs: Any, positions: Sequence[int]) -> Any:
    if isinstance(inputs, (list, tuple)):
        if is_namedtuple(inputs):
            raise DataError(
                f"A {type(inputs).__name__} has fixed fields and cannot be split between processes",
                fix="pass its _asdict() to split every field",
            )
        return rebuild_sequence(inputs, (inputs[position] for position in positions))
    if hasattr(inputs, "shape") and not hasattr(inputs, "iloc"):
        return inputs[list(positions)]
    if hasattr(inputs, "select"):  # datasets.Dataset
        return inputs.select(list(positions))
    if hasattr(inputs, "iloc"):  # pandas
        return inputs.iloc[list(positions)]
    if _sliceable(inputs):
        start = positions[0] if positions else 0
        if list(positions) == list(range(start, start + len(positions))):
            return inputs[start : start + len(positions)]
        return [inputs[position] for position in positions]
    from torch.utils.data import Subset

    return Subset(inputs, list(positions))


def _sliceable(inputs: Any) -> bool:
    return isinstance(inputs, Sequence)


def _same_length(inputs: Mapping[Any, Any]) -> None:
    lengths = {key: _length(value) for key, value in inputs.items() if not isinstance(value, Mapping)}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key!r}: {length}" for key, length in lengths.items())
        raise DataError(
            f"The values of a mapping must be equally long to be split between processes ({shown})",
            fix="split them one by one, or bring them to one length",
        )


__all__ = ["part_of", "split"]
