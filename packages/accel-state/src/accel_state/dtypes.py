"""What becomes of a dtype in a reduction, and how dtypes travel that a backend cannot reduce."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accel_core.protocols import ReduceOp

_SMALL_INTEGERS = {torch.int16: torch.int32, torch.int8: torch.int32}


def result_dtype(dtype: torch.dtype, op: ReduceOp) -> torch.dtype:
    """Return the dtype of a reduction, by the rules of ``torch.sum`` and ``torch.mean``.

    A sum of booleans is a count (int64); a mean of integers or booleans is a float, because
    rounding it would change the value silently. Everything else keeps its dtype.
    """
    whole = not (dtype.is_floating_point or dtype.is_complex)
    if op == "mean" and whole:
        return torch.get_default_dtype()
    if op == "sum" and dtype is torch.bool:
        return torch.int64
    return dtype


def wire_dtype(dtype: torch.dtype, *, through_gloo: bool) -> torch.dtype:
    """Return the dtype in which values of ``dtype`` are reduced.

    Half precision and 8-bit floats are summed in float32 on the CPU: exact to one rounding, and
    not every gloo can do otherwise. Booleans travel as uint8, 8 and 16 bit integers as int32.
    """
    if dtype is torch.bool:
        return torch.uint8
    if dtype in _SMALL_INTEGERS:
        return _SMALL_INTEGERS[dtype]
    if dtype.is_floating_point and (dtype.itemsize == 1 or (through_gloo and dtype.itemsize == 2)):
        return torch.float32
    return dtype


__all__ = ["result_dtype", "wire_dtype"]
