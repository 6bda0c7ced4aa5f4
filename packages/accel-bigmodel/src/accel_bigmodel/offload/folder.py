"""A folder of offloaded weights: the plain bytes of one tensor a file, and an index of names.

``index.json`` is an object of names and descriptions. ``{"dtype": "float32", "shape": [2, 3]}`` describes the
file ``<name>.dat`` of little-endian values; ``{"safetensors_file": ..., "weight_name": ..., "dtype": ...}`` a
tensor of such a file. The bytes of bfloat16 and of float8 are theirs, so nothing is converted.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import secrets
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel_core.errors import CheckpointError
from accel_core.paths import SAFE_FLAGS, inner_path, shown
from accel_core.plain_json import parse
from accel_core.trouble import explaining

INDEX = "index.json"
ENDING = ".dat"
_MOST_INDEX = 512 << 20
_MOST_DIMENSIONS = 64

Index = MutableMapping[str, Any]
_Path = str | os.PathLike[str]


def weight_path(folder: _Path, name: str) -> Path:
    """Return the file of the tensor ``name``; a slash in it is a folder.

    Raises CheckpointError for a name that leads out of ``folder``.
    """
    try:
        inside = inner_path(f"{name}{ENDING}")
    except CheckpointError as error:
        raise CheckpointError(
            f"The tensor {shown(name)} cannot be in a folder of weights: its name is no path inside of it",
            where=str(folder),
            fix="rename the module, or keep this tensor in memory",
        ) from error
    return Path(folder) / inside


def offload_weight(
    weight: torch.Tensor, weight_name: str, offload_folder: _Path, index: Index | None = None
) -> Index | None:
    """Write ``weight`` to its file in the folder, and describe it in ``index``, which is returned.

    The file is replaced when the new one is whole, so that a model which uses the old one is not disturbed.
    Raises CheckpointError for a tensor without data, and when the system refuses.
    """
    if weight.device.type == "meta":
        raise CheckpointError(
            f"{weight_name!r} has no data to offload: it lies on the meta device",
            where=str(offload_folder),
            fix="load its value first",
        )
    path = weight_path(offload_folder, weight_name)
    data = weight.detach().cpu().contiguous()
    # One byte for a tensor of none: an empty file cannot be mapped by everybody who reads these.
    raw = _bytes(data) if data.numel() else b"\0"
    with explaining("write an offloaded weight", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, raw)
    if index is not None:
        index[weight_name] = {
            "dtype": str(data.dtype).removeprefix("torch."),
            "shape": list(data.shape),
        }
    return index


def _bytes(data: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor, for as long as the caller holds the tensor."""
    # Through ctypes, not numpy, which a PyTorch may be without.
    count = data.numel() * data.element_size()
    return memoryview((ctypes.c_ubyte * count).from_address(data.data_ptr())).cast("B")


def _replace(path: Path, raw: bytes | memoryview) -> None:
    fresh = path.with_name(f".{secrets.token_hex(8)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE_FLAGS
    try:
        with os.fdopen(os.open(fresh, flags, 0o666), "wb") as stream:
            stream.write(raw)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def save_offload_index(index: Mapping[str, Any], offload_folder: _Path) -> None:
    """Add ``index`` to the index of the folder; an empty one changes nothing.

    Raises CheckpointError for an index that is there and not readable, and when the system refuses.
    """
    if not index:
        return
    path = Path(offload_folder) / INDEX
    known = read_index(path) if path.exists() else {}
    text = json.dumps({**known, **index}, indent=2).encode()
    with explaining("write the index of offloaded weights", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, text)


def offload_state_dict(save_dir: _Path, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Write every tensor of ``state_dict`` to the folder ``save_dir``, and its index last."""
    index: Index = {}
    with explaining("make a folder for offloaded weights", Path(save_dir)):
        Path(save_dir).mkdir(parents=True, exist_ok=True)
    for name, weight in state_dict.items():
        offload_weight(weight, name, save_dir, index)
    save_offload_index(index, save_dir)


def read_index(path: Path) -> dict[str, Any]:
    """Return what an index file says; raise CheckpointError unless it is names and descriptions."""
    with explaining("read the index of offloaded weights", path):
        size = path.stat().st_size
        if size > _MOST_INDEX:
            raise CheckpointError(f"The index of offloaded weights has {size:,} bytes", where=str(path))
        text = path.read_bytes()
    found = parse(text, str(path))
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        raise CheckpointError(
            "The index of offloaded weights is no JSON object of names and descriptions",
            where=str(path),
            fix="offload the weights again",
        )
    return found


def load_offloaded_weight(weight_file: _Path, weight_info: Mapping[str, Any]) -> torch.Tensor:
    """Return the tensor in ``weight_file``, which ``weight_info`` describes, as the pages of that file.

    Nothing is read before it is used, and writing to the tensor changes this process's memory only. Raises
    CheckpointError when the description is wrong, or does not fit the file.
    """
    path = Path(weight_file)
    dtype, shape = described_dtype(weight_info, path), _shape(weight_info, path)
    count = math.prod(shape)
    with explaining("read an offloaded weight", path):
        size = path.lstat().st_size
        if path.is_symlink() or not path.is_file():
            raise CheckpointError("An offloaded weight is no file", where=str(path))
        if not count:
            return torch.empty(shape, dtype=dtype)
        if size != count * dtype.itemsize:
            raise CheckpointError(
                f"An offloaded weight does not fit its description: {dtype} of shape {shown(shape)} has "
                f"{count * dtype.itemsize:,} bytes, the file {size:,}",
                where=str(path),
                fix="offload the weights again: the write was stopped, or the file belongs to another model",
            )
        try:
            storage: Any = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
        except RuntimeError as error:
            raise CheckpointError(
                f"An offloaded weight cannot be mapped: {error}", where=str(path)
            ) from error
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


def described_dtype(info: Mapping[str, Any], path: Path) -> torch.dtype:
    """Return the dtype that a description names; raise CheckpointError if torch has none of that name."""
    value = info.get("dtype")
    if isinstance(value, str):
        value = getattr(torch, value.removeprefix("torch."), None)
    if not isinstance(value, torch.dtype):
        raise _lie(path, f"its dtype is {shown(info.get('dtype'))}")
    return value


def _shape(info: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    shape: Any = info.get("shape")
    listed = isinstance(shape, (list, tuple)) and len(shape) <= _MOST_DIMENSIONS
    if listed and all(type(each) is int and 0 <= each < 2**63 for each in shape) and math.prod(shape) < 2**63:
        return tuple(shape)
    raise _lie(path, f"its shape is {shown(shape)}")


def _lie(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"The description of an offloaded weight is wrong: {what}",
        where=str(path),
        fix="offload the weights again",
    )


def load_offloaded_weights(model: nn.Module, index: Mapping[str, Any] | None, offload_folder: _Path) -> None:
    """Put the tensors that ``index`` describes in ``model``, on the CPU, as the pages of their files.

    Raises CheckpointError for names that the model does not have, and as `load_offloaded_weight`.
    """
    from .loader import OffloadedWeightsLoader
    from .slot import like

    if not index:
        return
    weights = OffloadedWeightsLoader(save_folder=offload_folder, index=index)
    for name in index:
        path, _, key = name.rpartition(".")
        try:
            owner = model.get_submodule(path)
        except AttributeError:
            owner = None
        table: Any = next((t for t in _tables(owner) if t.get(key) is not None), None)
        if table is None:
            raise CheckpointError(
                f"The model has no tensor {shown(name)}",
                where=str(offload_folder),
                fix="load into the same model",
            )
        table[key] = like(table[key], weights[name])


def _tables(owner: nn.Module | None) -> tuple[dict[str, Any], ...]:
    return () if owner is None else (owner._parameters, owner._buffers)


__all__ = [
    "described_dtype",
    "load_offloaded_weight",
    "load_offloaded_weights",
    "offload_state_dict",
    "offload_weight",
    "read_index",
    "save_offload_index",
    "weight_path",
]
