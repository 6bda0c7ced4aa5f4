"""What ``torch.save`` wrote, read without running anything that the file asks for."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CheckpointError

T = TypeVar("T")
_MOST_LETTERS = 200


def load_plain(path: Path, load: Callable[..., Any]) -> Any:
    """Return tensors and plain containers from a file, tensors on the CPU and mapped where they can be.

    ``load`` is ``torch.load``, which this package does not have.

    Raises CheckpointError for a file that is damaged, or holds more: functions to call, objects of classes.
    """
    try:
        with path.open("rb") as stream:
            # Files from before torch 1.6 are no archives, and cannot be mapped.
            mapped = stream.read(2) == b"PK"
        with warnings.catch_warnings():
            # Either it is read or there is an error.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} holds more than tensors and plain containers: {_reason(error)}",
            where=str(path),
            fix="do not use it unless you trust it: convert it with the program that wrote it",
        ) from error
    # torch's parsers raise whatever they met in a damaged file.
    except Exception as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {_reason(error)}", where=str(path), fix="copy or download it again"
        ) from error


def load_named(path: Path, load: Callable[..., Any], tensor: type[T]) -> Mapping[str, T]:
    """Return what `load_plain` does, if it is tensors by name; ``tensor`` is ``torch.Tensor``.

    Raises CheckpointError as `load_plain`, and for anything else that the file holds.
    """
    found = load_plain(path, load)
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"{path.name} holds a {type(found).__name__}, no tensors by name", where=str(path)
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, tensor):
            raise CheckpointError(
                f"{path.name} holds more than tensors by name: {name!r} is a {type(value).__name__}",
                where=str(path),
                fix="take the state dict of the model out of it, and save that",
            )
    return found


def _reason(error: BaseException) -> str:
    """Return the line of torch's message that says what was met; the others are advice to trust the file."""
    lines = str(error).splitlines() or [type(error).__name__]
    telling = [line for line in lines if "WeightsUnpickler error" in line or "GLOBAL" in line]
    text = (telling or lines)[0].strip().removeprefix("WeightsUnpickler error: ")
    return text.split(" Please use `torch.serialization")[0][:_MOST_LETTERS]


__all__ = ["load_named", "load_plain"]
