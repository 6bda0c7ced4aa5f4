"""Walk nested containers of tensors: apply, describe, rebuild, ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, TypeGuard

import torch

from accel_core.errors import DataError
from accel_core.nested import first_leaf, leaves, map_nested, rebuild_mapping, rebuild_sequence


class NotATensorError(DataError, TypeError):
    """Report a value that is no tensor where only tensors are possible."""


@dataclass(frozen=True, slots=True)
class TensorInformation:
    """What it takes to make an empty tensor like another one."""

    shape: torch.Size
    dtype: torch.dtype


def is_torch_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Tell whether ``value`` is a tensor."""
    return isinstance(value, torch.Tensor)


def is_tensor_information(value: object) -> TypeGuard[TensorInformation]:
    """Tell whether ``value`` describes a tensor."""
    return isinstance(value, TensorInformation)


def honor_type(obj: Any, generator: Iterator[Any]) -> Any:
    """Return a sequence of the class of ``obj``, named tuples included, of what ``generator`` yields."""
    return rebuild_sequence(obj, generator)


def recursively_apply(
    func: Callable[..., Any],
    data: Any,
    *args: Any,
    test_type: Callable[[Any], bool] = is_torch_tensor,
    error_on_other_type: bool = False,
    **kwargs: Any,
) -> Any:
    """Return ``data`` with ``func(leaf, *args, **kwargs)`` in place of every leaf that ``test_type`` takes.

    Lists, tuples, named tuples and mappings keep their classes. Other leaves are passed through, or
    raise NotATensorError (a TypeError) with ``error_on_other_type``.
    """

    def apply(leaf: Any) -> Any:
        if test_type(leaf):
            return func(leaf, *args, **kwargs)
        if error_on_other_type:
            raise _unsupported(leaf, data, getattr(func, "__name__", str(func)))
        return leaf

    return map_nested(apply, data)


def only_tensors(data: Any, operation: str) -> list[torch.Tensor]:
    """Return the leaves of ``data``; raise NotATensorError, naming the place, when one is no tensor."""
    found: list[torch.Tensor] = []
    for _, leaf in leaves(data):
        if not isinstance(leaf, torch.Tensor):
            raise _unsupported(leaf, data, operation)
        found.append(leaf)
    return found


def _unsupported(leaf: Any, data: Any, operation: str) -> NotATensorError:
    return _no_tensor(leaf, operation, next((path for path, item in leaves(data) if item is leaf), ""))


def _no_tensor(leaf: Any, operation: str, place: str) -> NotATensorError:
    return NotATensorError(
        f"{operation} takes tensors in lists, tuples and mappings, not {type(leaf).__name__} {leaf!r:.80}",
        where=f"at {place}" if place else "",
        fix="pass dataclasses.asdict(value)"
        if is_dataclass(leaf)
        else "pass torch.as_tensor(value), or use gather_object / broadcast_object_list for other objects",
    )


def find_batch_size(data: Any) -> int:
    """Return the first dimension of the first tensor in ``data`` that has one.

    Raises NotATensorError when there is none.
    """
    tensor = first_leaf(data, lambda leaf: isinstance(leaf, torch.Tensor) and leaf.ndim > 0)
    if tensor is None:
        kinds = sorted({type(leaf).__name__ for _, leaf in leaves(data)}) or ["nothing"]
        raise NotATensorError(
            f"No batch size: {type(data).__name__} without a tensor that has a dimension: {', '.join(kinds)}",
            fix="let the batch hold a tensor, or state the batch size where it is needed",
        )
    return int(tensor.shape[0])


def find_device(data: Any) -> torch.device | None:
    """Return the device of the first tensor in ``data``; None when it holds none."""
    tensor = first_leaf(data, is_torch_tensor)
    return None if tensor is None else tensor.device


def listify(data: Any) -> Any:
    """Return ``data`` with every tensor as a list of numbers (a number when it has no dimension)."""
    return recursively_apply(torch.Tensor.tolist, data)


def get_data_structure(data: Any) -> Any:
    """Return ``data`` with every tensor replaced by its `TensorInformation`."""
    return recursively_apply(lambda tensor: TensorInformation(tensor.shape, tensor.dtype), data)


def get_shape(data: Any) -> Any:
    """Return ``data`` with every tensor replaced by the list of its sizes."""
    return recursively_apply(lambda tensor: list(tensor.shape), data)


def initialize_tensors(data_structure: Any) -> Any:
    """Return ``data_structure`` with an empty CPU tensor in place of every `TensorInformation`."""

    def empty(described: TensorInformation) -> torch.Tensor:
        return torch.empty(described.shape, dtype=described.dtype)

    return recursively_apply(empty, data_structure, test_type=is_tensor_information)


def concatenate(data: Any, dim: int = 0) -> Any:
    """Return one structure from a list of alike ones, their tensors joined along ``dim``.

    Raises NotATensorError for other leaves and DataError, naming the place, when the structures or
    the shapes of their tensors do not fit together.
    """
    if not isinstance(data, (list, tuple)) or not data:
        raise DataError(f"concatenate takes a list of structures that is not empty, got {data!r:.80}")
    return _concatenated(data, dim, "")


def _concatenated(data: Sequence[Any], dim: int, path: str) -> Any:
    first = data[0]
    if isinstance(first, (list, tuple)):
        _alike([len(item) if isinstance(item, (list, tuple)) else type(item).__name__ for item in data], path)
        places = range(len(first))
        return rebuild_sequence(
            first, (_concatenated([item[i] for item in data], dim, f"{path}[{i}]") for i in places)
        )
    if isinstance(first, Mapping):
        _alike([list(item) if isinstance(item, Mapping) else type(item).__name__ for item in data], path)
        joined = {key: _concatenated([item[key] for item in data], dim, f"{path}[{key!r}]") for key in first}
        return rebuild_mapping(first, joined)
    for number, item in enumerate(data):
        if not isinstance(item, torch.Tensor):
            raise _no_tensor(item, "concatenate", f"[{number}]{path}")
    try:
        return torch.cat(list(data), dim=dim)
    except (RuntimeError, IndexError) as error:
        shapes = ", ".join(f"{tuple(item.shape)} on {item.device}" for item in data[:8])
        raise DataError(
            f"Tensors cannot be joined along dimension {dim}: {shapes}",
            where=f"at {path}" if path else "",
            fix="bring the other dimensions to one size, and the tensors to one device",
        ) from error


def _alike(shapes: list[Any], path: str) -> None:
    ordered = [sorted(shape, key=repr) if isinstance(shape, list) else shape for shape in shapes]
    if any(shape != ordered[0] for shape in ordered):
        raise DataError(
            f"concatenate takes alike structures, these hold {', '.join(map(str, shapes))}",
            where=f"at {path}" if path else "",
        )


def slice_tensors(
    data: Any,
    tensor_slice: slice,
    process_index: int | None = None,  # noqa: ARG001 - documented; used where a tensor is itself sharded
    num_processes: int | None = None,  # noqa: ARG001
) -> Any:
    """Return ``data`` with every tensor cut by ``tensor_slice`` along its first dimension.

    A tensor without dimensions is the same for all samples and is passed through.
    """
    return recursively_apply(lambda tensor: tensor[tensor_slice] if tensor.ndim else tensor, data)


__all__ = [
    "NotATensorError",
    "TensorInformation",
    "concatenate",
    "find_batch_size",
    "find_device",
    "get_data_structure",
    "get_shape",
    "honor_type",
    "initialize_tensors",
    "is_tensor_information",
    "is_torch_tensor",
    "listify",
    "only_tensors",
    "recursively_apply",
    "slice_tensors",
]
