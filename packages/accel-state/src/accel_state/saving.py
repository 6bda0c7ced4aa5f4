"""Write one object once per job (or once per machine), and read it back without running code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TYPE_CHECKING, Any

import torch

from accel_core.errors import CheckpointError, DataError, NotInstalledError

from . import process

if TYPE_CHECKING:
    from torch.serialization import MAP_LOCATION

_SHOWN = 5


def save(
    obj: Any,
    f: str | os.PathLike[str] | IO[bytes],
    save_on_each_node: bool = False,
    safe_serialization: bool = False,
) -> None:
    """Write ``obj`` on the main process; with ``save_on_each_node``, on the first process of each machine.

    A file appears whole or not at all. ``safe_serialization`` writes safetensors
    (https://github.com/huggingface/safetensors), which holds a mapping of names to tensors; tensors
    that share memory are refused. Everything else is written by ``torch.save``.

    Raises DataError for what safetensors cannot hold, CheckpointError when the file cannot be written.
    """
    topology = (process.current() or process.start()).topology
    if (topology.local_rank if save_on_each_node else topology.rank) != 0:
        return
    if safe_serialization:
        content = _safe(obj)
        _write(f, lambda file: file.write(content))
    else:
        _write(f, lambda file: torch.save(obj, file))


def load(f: str | os.PathLike[str] | IO[bytes], map_location: MAP_LOCATION = None, **kwargs: Any) -> Any:
    """Return what ``torch.save`` wrote to ``f``; tensors and plain containers only, unless asked.

    ``map_location`` and ``kwargs`` are those of ``torch.load``. ``weights_only=False`` lets the file run
    code of its choice. Raises CheckpointError for a file that is not there or not readable.
    """
    kwargs.setdefault("weights_only", True)
    try:
        return torch.load(f, map_location=map_location, **kwargs)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {f}", fix="check the path") from error
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{f} is no file of tensors and plain containers, or is damaged: {reason}",
            fix="if you trust where it comes from, load it with weights_only=False, which lets it run code",
        ) from error
    except (RuntimeError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{f} cannot be read: {reason}", fix="write it again") from error


def _safe(obj: Any) -> bytes:
    try:
        from safetensors.torch import save as to_bytes
    except ImportError as error:
        raise NotInstalledError("file format", "safetensors", "safetensors") from error
    if not isinstance(obj, Mapping) or not all(isinstance(name, str) for name in obj):
        raise DataError(
            f"safetensors holds a mapping of names to tensors, not {type(obj).__name__}",
            fix="pass a state dict, or safe_serialization=False",
        )
    others = [name for name, value in obj.items() if not isinstance(value, torch.Tensor)]
    if others:
        shown = ", ".join(f"{name!r}: {type(obj[name]).__name__}" for name in others[:_SHOWN])
        raise DataError(
            f"safetensors holds tensors only; {len(others)} values are none ({shown})",
            fix="leave them out, or pass safe_serialization=False",
        )
    shared = _shared(obj)
    if shared:
        raise DataError(
            f"Tensors share memory and would be written as if they were different: {shared}",
            fix="leave all but one name of each group out, or clone them",
        )
    content: bytes = to_bytes(
        {name: value.contiguous() for name, value in obj.items()}, metadata={"format": "pt"}
    )
    return content


def _shared(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the groups of names whose tensors lie in one piece of memory, in words."""
    places: dict[tuple[str, int], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel() and not tensor.is_meta:
            place = (str(tensor.device), tensor.untyped_storage().data_ptr())
            places.setdefault(place, []).append(name)
    groups = [names for names in places.values() if len(names) > 1]
    return "; ".join(", ".join(names) for names in groups[:_SHOWN])


def _write(target: str | os.PathLike[str] | IO[bytes], writer: Any) -> None:
    if not isinstance(target, (str, os.PathLike)):
        writer(target)
        return
    path = Path(target)
    try:
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                # As open() makes it; a temporary file is for its owner only.
                mask = os.umask(0)
                os.umask(mask)
                Path(file.name).chmod(0o666 & ~mask)
                writer(file)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                with suppress(OSError):
                    Path(file.name).unlink()
                raise
        Path(file.name).replace(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror or error}",
            where=f"folder {path.parent}",
            fix="make the folder first, with room and rights to write",
        ) from error


__all__ = ["load", "save"]
