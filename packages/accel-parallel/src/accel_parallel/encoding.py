"""Nested state as JSON and named tensors: no pickle, every value back as it was."""

from __future__ import annotations

import base64
import math
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import torch

from accel_core.errors import CheckpointError
from accel_core.nested import is_namedtuple

_DEEPEST = 100


def encode(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return ``value`` as JSON; its tensors are put into ``tensors`` under names that start with ``path``.

    Plain numbers, strings, booleans and None stand for themselves; everything else becomes a dict
    with one key that says what it is: lists, tuples, sets, deques, mappings with keys of these kinds,
    ``OrderedDict``, ``Counter``, ``defaultdict`` of plain classes, bytes, complex numbers, NumPy arrays and
    scalars, torch's dtypes and devices. Tensors are not copied. Raises CheckpointError, with the place, for
    what has no such form.
    """
    return _encode(value, path, tensors, 0)


def _encode(value: Any, path: str, tensors: dict[str, torch.Tensor], depth: int) -> Any:
    if value is None or (isinstance(value, (bool, int, str)) and not _is_special(value)):
        return value
    if isinstance(value, float) and not _is_special(value):
        # JSON has no infinity and no NaN.
        return value if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, torch.Tensor):
        return {"tensor": _put(value.detach(), path, tensors)}
    if depth > _DEEPEST:
        raise _unfit(f"Values more than {_DEEPEST} levels deep, or that contain themselves,", path[:80])

    def inner(item: Any, place: str) -> Any:
        return _encode(item, f"{path}.{place}", tensors, depth + 1)

    found = _encode_container(value, inner)
    if found is None:
        found = _encode_other(value, path, tensors)
    if found is None:
        raise _unfit(f"A {type(value).__name__}", path)
    return found


def _is_special(value: Any) -> bool:
    """Tell whether a number or string is more than that: NumPy's, or a member of an Enum."""
    if type(value) in _PLAIN:
        return False
    numpy: Any = sys.modules.get("numpy")
    return isinstance(value, Enum) or (numpy is not None and isinstance(value, numpy.generic))


def _encode_container(value: Any, inner: Callable[[Any, str], Any]) -> Any:
    for name, cls in _SEQUENCES.items():
        if isinstance(value, cls) and not is_namedtuple(value):
            return {name: [inner(item, str(number)) for number, item in enumerate(value)]}
    if isinstance(value, deque):
        return {"deque": [value.maxlen, [inner(item, str(number)) for number, item in enumerate(value)]]}
    if not isinstance(value, Mapping):
        return None
    if isinstance(value, defaultdict):
        factory = next((name for name, cls in _FACTORIES.items() if cls is value.default_factory), None)
        pairs = [[inner(key, "key"), inner(item, str(key))] for key, item in value.items()]
        # What makes missing values is code, unless it is a class that everybody has.
        return None if factory is None else {"defaultdict": [factory, pairs]}
    if isinstance(value, OrderedDict):
        return {"ordered": [[inner(key, "key"), inner(item, str(key))] for key, item in value.items()]}
    if isinstance(value, Counter) or not all(isinstance(key, str) for key in value):
        kind = "counter" if isinstance(value, Counter) else "map"
        return {kind: [[inner(key, "key"), inner(item, str(key))] for key, item in value.items()]}
    return {"dict": {key: inner(item, key) for key, item in value.items()}}


def _encode_other(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, (bytes, bytearray)):
        kind = "bytes" if isinstance(value, bytes) else "bytearray"
        return {kind: base64.b64encode(value).decode()}
    if isinstance(value, complex):
        return {"complex": [repr(value.real), repr(value.imag)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        array = numpy.ascontiguousarray(value)
        if array.dtype.hasobject or array.dtype.names or not array.dtype.isnative:
            return None
        raw = torch.from_numpy(array.reshape(-1).view(numpy.uint8).copy())
        name = _put(raw, path, tensors)
        return {"numpy": [name, array.dtype.str, list(value.shape), isinstance(value, numpy.generic)]}
    return None


def _put(tensor: torch.Tensor, path: str, tensors: dict[str, torch.Tensor]) -> str:
    while path in tensors:
        # Keys may have dots in them, so two places can read alike.
        path += "+"
    tensors[path] = tensor
    return path


def _unfit(what: str, path: str) -> CheckpointError:
    return CheckpointError(
        f"{what} cannot be written to a checkpoint without pickle",
        where=path,
        fix="keep numbers, strings, tensors, arrays, and lists, tuples, sets and dicts of them in the state",
    )


def decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return what ``encode`` was given. Raises CheckpointError when ``value`` is not of its making."""
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, content),) = value.items()
        read = _READERS.get(kind)
        if read is not None:
            try:
                return read(content, tensors)
            except (TypeError, ValueError, LookupError, AttributeError) as error:
                raise _unreadable(value) from error
    raise _unreadable(value)


def owned(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return ``tensors`` in memory of their own, no longer that of a file; those that share it still do.

    For state that stays in use: a file that is mapped may lie on a disk that goes away.
    """
    storages: dict[int, torch.UntypedStorage] = {}
    found = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        own = storages.setdefault(storage.data_ptr(), storage)
        if own is storage:
            own = storages[storage.data_ptr()] = storage.clone()  # type: ignore[no-untyped-call]
        place = (tensor.storage_offset(), tensor.size(), tensor.stride())
        found[name] = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(own, *place)
    return found


def _unreadable(value: Any) -> CheckpointError:
    return CheckpointError(
        f"State that this version cannot read: {value!r}"[:300],
        fix="the checkpoint is damaged or from another version: load it with the version that wrote it",
    )


def _all(content: list[Any], tensors: Mapping[str, torch.Tensor]) -> list[Any]:
    return [decode(item, tensors) for item in content]


def _pairs(content: list[Any], tensors: Mapping[str, torch.Tensor]) -> dict[Any, Any]:
    return {decode(key, tensors): decode(item, tensors) for key, item in content}


def _dtype(content: str, _: Mapping[str, torch.Tensor]) -> torch.dtype:
    found = getattr(torch, content)
    if not isinstance(found, torch.dtype):
        raise TypeError(content)
    return found


def _numpy(content: list[Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    import numpy as np

    name, kind, shape, scalar = content
    array = tensors[name].numpy().copy().view(np.dtype(kind)).reshape(shape)
    return array[()] if scalar else array


_PLAIN = (bool, int, str, float)
_SEQUENCES: Mapping[str, Any] = {
    "tuple": tuple,
    "list": list,
    "frozenset": frozenset,
    "set": set,
}
_FACTORIES: Mapping[str, type | None] = {
    "int": int,
    "float": float,
    "list": list,
    "dict": dict,
    "set": set,
    "none": None,
}
_READERS: Mapping[str, Callable[[Any, Mapping[str, torch.Tensor]], Any]] = {
    "tensor": lambda content, tensors: tensors[content],
    "float": lambda content, _: float(content),
    "tuple": lambda content, tensors: tuple(_all(content, tensors)),
    "list": _all,
    "set": lambda content, tensors: set(_all(content, tensors)),
    "frozenset": lambda content, tensors: frozenset(_all(content, tensors)),
    "deque": lambda content, tensors: deque(_all(content[1], tensors), content[0]),
    "dict": lambda content, tensors: {key: decode(item, tensors) for key, item in content.items()},
    "map": _pairs,
    "ordered": lambda content, tensors: OrderedDict(_pairs(content, tensors)),
    "counter": lambda content, tensors: Counter(_pairs(content, tensors)),
    "defaultdict": lambda content, tensors: defaultdict(_FACTORIES[content[0]], _pairs(content[1], tensors)),
    "bytes": lambda content, _: base64.b64decode(content, validate=True),
    "bytearray": lambda content, _: bytearray(base64.b64decode(content, validate=True)),
    "complex": lambda content, _: complex(float(content[0]), float(content[1])),
    "dtype": _dtype,
    "device": lambda content, _: torch.device(content),
    "numpy": _numpy,
}

__all__ = ["decode", "encode", "owned"]
