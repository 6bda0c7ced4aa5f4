"""Read the folder that another library's ``save_state`` wrote: pickles, without running what is in them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from accel_core.errors import CheckpointError
from accel_core.generators import pack_numpy, pack_python
from accel_core.trouble import explaining
from accel_core.weights.pickled import load_plain

from .checkpoint.naming import MANIFEST
from .numpy_standins import replaced, understood
from .weights import read

_MOST = 10_000
"""A higher number in the name of a file is no number of an object."""

_MODELS = "models"
_FILES = {
    _MODELS: re.compile(r"model(?:_(\d{1,9}))?\.safetensors|pytorch_model(?:_(\d{1,9}))?\.bin"),
    "optimizers": re.compile(r"optimizer(?:_(\d{1,9}))?\.bin"),
    "schedulers": re.compile(r"scheduler(?:_(\d{1,9}))?\.bin"),
    "samplers": re.compile(r"sampler(?:_(\d{1,9}))?\.bin"),
    "loaders": re.compile(r"dl_state_dict(?:_(\d{1,9}))?\.bin"),
    "random_states": re.compile(r"random_states_(\d{1,9})\.pkl"),
    "custom": re.compile(r"custom_checkpoint_(\d{1,9})\.pkl"),
}
_SCALER = "scaler.pt"


@dataclass(slots=True)
class LegacyCheckpoint:
    """What such a folder holds, by kind and number; None where a number is missing or was not read.

    ``random_states`` are by rank: Python's, NumPy's and torch's, and ``step``, the updates so far.
    ``unread``: by file, why it was not read.
    """

    path: Path
    models: list[Mapping[str, torch.Tensor] | None] = field(default_factory=list)
    optimizers: list[dict[str, Any] | None] = field(default_factory=list)
    schedulers: list[dict[str, Any] | None] = field(default_factory=list)
    samplers: list[Any] = field(default_factory=list)
    loaders: list[Any] = field(default_factory=list)
    scaler: dict[str, Any] | None = None
    random_states: list[dict[str, Any] | None] = field(default_factory=list)
    custom: list[Any] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)

    def generators(self) -> list[dict[str, torch.Tensor]]:
        """Return the states of the generators by rank, as `accel_state.rng_state.restore` takes them.

        Of hardware each rank gets one device's. Raises CheckpointError for a rank whose states are missing.
        """
        return [_generators(state, rank) for rank, state in enumerate(self.random_states)]


def read_legacy(directory: str | os.PathLike[str]) -> LegacyCheckpoint:
    """Return what can be read of a folder of pickles; nothing in it is executed.

    Read are tensors, plain containers, numbers, texts, and NumPy's arrays of plain numbers. A file that
    holds more, or is damaged, a link or of no known name, is in ``unread`` with the reason. Tensors are
    on the CPU and mapped: use them before the folder changes.

    Raises CheckpointError for a folder that is not there, is a checkpoint of accel, or holds none of it.
    """
    folder = Path(directory)
    with explaining("read the old checkpoint", folder):
        entries = sorted(os.scandir(folder), key=lambda each: each.name)
    if any(each.name == MANIFEST for each in entries):
        raise CheckpointError(
            f"{folder} is a checkpoint of accel, with a manifest",
            where=str(folder),
            fix="leave legacy=True out",
        )
    found = LegacyCheckpoint(folder)
    places = [(each, *_place(each.name)) for each in entries]
    if not any(kind for _, kind, _ in places):
        raise CheckpointError(
            f"{folder} holds nothing that save_state of another library writes",
            where=", ".join(each.name for each in entries[:5]) or "it is empty",
            fix="name the folder with model.safetensors or pytorch_model.bin, optimizer.bin and the like",
        )
    for each, kind, number in places:
        reason = _unfit(each, kind)
        if not reason:
            reason = _take(found, Path(each.path), kind, number)
        if reason:
            found.unread[each.name] = reason
    return found


def _place(name: str) -> tuple[str, int]:
    """Return of which kind the file ``name`` is, and its number; no kind when it is unknown."""
    if name == _SCALER:
        return "scaler", 0
    for kind, pattern in _FILES.items():
        match = pattern.fullmatch(name)
        if match:
            number = int(next(filter(None, match.groups()), "0"))
            return (kind, number) if number <= _MOST else ("", 0)
    return "", 0


def _unfit(entry: os.DirEntry[str], kind: str) -> str:
    if entry.is_symlink():
        return "is a link, which may lead anywhere"
    if entry.is_dir():
        return "is a folder: shards of another kind are not read"
    if not entry.is_file():
        return "is no file"
    return "" if kind else "has no known name"


def _take(found: LegacyCheckpoint, path: Path, kind: str, number: int) -> str:
    """Read a file into its place; return why not where that cannot be."""
    try:
        value = read(path) if kind == _MODELS else _plain(path)
    except CheckpointError as error:
        return error.what
    if kind not in {"custom", "samplers", "loaders"} and not isinstance(value, Mapping):
        return f"holds a {type(value).__name__} and no state by name"
    if kind == "scaler":
        found.scaler = dict(value)
        return ""
    into: list[Any] = getattr(found, kind)
    into += [None] * (number + 1 - len(into))
    if into[number] is not None:
        return "there is another file for the same model"
    into[number] = value
    return ""


_HARDWARE = re.compile(r"torch_(\w+)_manual_seed")


def _generators(state: dict[str, Any] | None, rank: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    try:
        for key, value in (state or {}).items():
            hardware = _HARDWARE.fullmatch(key)
            if key == "random_state":
                found["python"] = _tensor(pack_python(value))
            elif key == "numpy_random_seed":
                found["numpy"] = _tensor(pack_numpy(_named(*value)))
            elif key == "torch_manual_seed":
                found["torch"] = value
            elif hardware:
                found[hardware[1]] = value[rank % len(value)] if isinstance(value, (list, tuple)) else value
    except (TypeError, ValueError, AttributeError, LookupError, ZeroDivisionError) as error:
        raise _no_states(rank, f"{type(error).__name__}: {error}") from error
    if not found or not all(isinstance(each, torch.Tensor) for each in found.values()):
        raise _no_states(rank, "none is there" if not found else "they are no tensors")
    return found


def _named(kind: str, key: Any, place: int, has_gauss: int, gauss: float) -> dict[str, Any]:
    """Return the older form of the state of NumPy's generator in its newer one."""
    state = {"key": key, "pos": place}
    return {"bit_generator": kind, "state": state, "has_gauss": has_gauss, "gauss": gauss}


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _no_states(rank: int, why: str) -> CheckpointError:
    return CheckpointError(
        f"The random states of rank {rank} cannot be used: {why}",
        where=f"random_states_{rank}.pkl",
        fix="seed the run anew",
    )


def _plain(path: Path) -> Any:
    with understood():
        value = load_plain(path, torch.load)
    return replaced(value)


__all__ = ["LegacyCheckpoint", "read_legacy"]
