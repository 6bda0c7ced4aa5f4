"""How wide one element is, for torch's types and for those that only quantized checkpoints have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum

import torch
from torch import nn

from accel_core.errors import UnknownNameError


class CustomDtype(Enum):
    """Types of weights that torch has no dtype for, or packs into another; a value is the type's name."""

    FP8 = "fp8"
    INT4 = "int4"
    INT2 = "int2"


AnyDtype = torch.dtype | CustomDtype | str
_PLAIN = (nn.Parameter, torch.Tensor)
_BITS = {"fp8": 8, "int4": 4, "int2": 2}


def bits_of(dtype: AnyDtype) -> int:
    """Return the bits of one element. Raises UnknownNameError for a type that nobody has."""
    if isinstance(dtype, torch.dtype):
        return dtype.itemsize * 8
    name = dtype.value if isinstance(dtype, CustomDtype) else dtype.removeprefix("torch.")
    if name in _BITS:
        return _BITS[name]
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        known = {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
        raise UnknownNameError("dtype", name, known | set(_BITS))
    return found.itemsize * 8


def _narrowed(own: torch.dtype, bits: int | None) -> int:
    """Return the bits of an element of type ``own``, cast to ``bits`` if it is a wider floating-point one."""
    has = own.itemsize * 8
    if bits is None or not (own.is_floating_point or own.is_complex):
        return has
    return min(has, bits)


def measure(
    dtype: AnyDtype | None,
    special_dtypes: Mapping[str, AnyDtype] | None = None,
) -> Callable[[str, torch.Tensor], int]:
    """Return what gives the bytes of a tensor, by its name, as if it had the type that is asked for."""
    bits = None if dtype is None else bits_of(dtype)
    special = {name: bits_of(each) for name, each in (special_dtypes or {}).items()}
    # A model has few types and a great many tensors.
    widths: dict[torch.dtype, int] = {}

    if bits is None and not special:
        return _own_size

    def size(name: str, tensor: torch.Tensor) -> int:
        own = tensor.dtype
        width = special.get(name) if special else None
        if width is None:
            if type(tensor) not in _PLAIN and hasattr(tensor, "__tensor_flatten__"):
                return packed_size(tensor)
            width = widths.get(own)
            if width is None:
                width = widths[own] = _narrowed(own, bits)
        return (tensor.numel() * width + 7) >> 3

    return size


def _own_size(_: str, tensor: torch.Tensor) -> int:
    plain = type(tensor) in _PLAIN or not hasattr(tensor, "__tensor_flatten__")
    return tensor.nbytes if plain else packed_size(tensor)


def packed_size(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor made of others, as quantized ones are, which say what they were before."""
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    inner = (getattr(tensor, name) for name in names)
    return sum(packed_size(each) if hasattr(each, "__tensor_flatten__") else each.nbytes for each in inner)


__all__ = ["AnyDtype", "CustomDtype", "bits_of", "measure", "packed_size"]
