"""Shapes in the files of ``torch.save``: they have no headers, so torch maps them and looks."""

from __future__ import annotations

from typing import Any

import torch

from accel_core.errors import CheckpointError
from accel_core.paths import shown
from accel_core.weights.index import WeightFiles, real_file
from accel_core.weights.pickled import load_plain

from .shapes import TensorShape

CODES = {
    torch.complex128: "C128",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def read_pickled(files: WeightFiles) -> tuple[dict[str, TensorShape], dict[str, str]]:
    """Return the tensors, and the names that share memory with one of them.

    Raises CheckpointError for files that are damaged or hold more than tensors in plain containers.
    """
    states = {file: _state(file) for file in files.files}
    chosen = files.assign({file: list(state) for file, state in states.items()})
    return shapes({name: states[file][name] for name, file in chosen.items()})


def shapes(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, TensorShape], dict[str, str]]:
    """Return types and shapes of ``tensors``, and the names that share memory with an earlier one."""
    seen: dict[Any, str] = {}
    found, aliases = {}, {}
    for name, tensor in tensors.items():
        memory = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        # Tensors without data, of the meta device or of no elements, have no address.
        key = memory if memory[0] else id(tensor)
        if key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        if tensor.dtype not in CODES:
            raise CheckpointError(f"{name!r} has the dtype {tensor.dtype}, which has no known size")
        found[name] = TensorShape(CODES[tensor.dtype], tuple(tensor.shape))
    return found, aliases


def _state(file: Any) -> dict[str, torch.Tensor]:
    state = load_plain(real_file(file), torch.load)
    inner = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(inner, dict):
        raise CheckpointError(
            f"{file.name} holds a {type(state).__name__}, not weights by name", where=str(file)
        )
    found = {name: value for name, value in inner.items() if isinstance(value, torch.Tensor)}
    if inner and not found:
        raise CheckpointError(
            f"{file.name} holds no tensors by name, only {shown(list(inner))}",
            where=str(file),
            fix="take the state dict of the model out of it, and save that",
        )
    return found


__all__ = ["CODES", "read_pickled", "shapes"]
