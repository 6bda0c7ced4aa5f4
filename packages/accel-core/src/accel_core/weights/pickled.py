"""What ``torch.save`` wrote, read without running anything that the file asks for."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

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


def _reason(error: BaseException) -> str:
    """Return the line of torch's message that says what was met; the others are advice to trust the file."""
    lines = str(error).splitlines() or [type(error).__name__]
    telling = [line for line in lines if "WeightsUnpickler error" in line or "GLOBAL" in line]
    text = (telling or lines)[0].strip().removeprefix("WeightsUnpickler error: ")
    return text.split(" Please use `torch.serialization")[0][:_MOST_LETTERS]


__all__ = ["load_plain"]
