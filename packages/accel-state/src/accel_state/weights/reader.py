"""Read weights from a folder, a file or an index, and nothing outside of what they name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from accel_core.errors import CheckpointError

from ..checkpoint.naming import inner_path
from ..checkpoint.plain_json import parse
from ..checkpoint.trouble import explaining
from .decode import read_pickled, read_safe
from .layout import FAMILIES, SAFE

_MOST_INDEX = 128 << 20
_MOST_SHOWN = 5


class Weights(Mapping[str, torch.Tensor]):
    """Tensors by name on the CPU, read from ``files`` when they are taken out where the format allows it.

    Safetensors are mapped: a page is read when it is used, and memory is the system's to take back.
    """

    def __init__(self, parts: Mapping[Path, Mapping[str, torch.Tensor]], places: Mapping[str, Path]) -> None:
        self.files = tuple(parts)
        self._parts = parts
        self._places = places

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._parts[self._places[name]][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __repr__(self) -> str:
        return f"<Weights, {len(self)} tensors in {len(self.files)} files>"


def read(path: str | os.PathLike[str]) -> Weights:
    """Return the weights that ``path`` holds: a folder, one file of weights, or an index of several.

    In a folder, the first of ``model.safetensors``, its index, ``pytorch_model.bin``, its index, or the only
    other file called ``index.json`` or ``*.index.json``. An index is a JSON object of names and files, alone
    or under ``weight_map``. What ``torch.save`` wrote is read with ``weights_only=True``.

    Raises CheckpointError for files that are missing, damaged or no weights, and for an index that leads
    out of its folder or says what its files do not.
    """
    given = Path(path)
    with explaining("read the weights", given):
        found = _found(given) if given.is_dir() else given
        if not found.exists():
            raise CheckpointError(f"There is no file {found}", fix="check the path")
    if found.suffix == ".json":
        return _indexed(found)
    part = _part(found)
    return Weights({found: part}, dict.fromkeys(part, found))


def _found(folder: Path) -> Path:
    names = [each.name for each in folder.iterdir()]
    for family in FAMILIES:
        for name in (family.single, family.index):
            if name in names:
                return folder / name
    others = [name for name in names if name == "index.json" or name.endswith(".index.json")]
    if len(others) == 1:
        return folder / others[0]
    half = sorted(name for name in names if any(family.is_shard(name) for family in FAMILIES))
    if half:
        raise CheckpointError(
            f"{folder} holds shards, and no index that says which: a save was stopped, or is going on",
            where=_listed(half),
            fix="save the model again, or name the index of another folder",
        )
    raise CheckpointError(
        f"{folder} holds no weights",
        where=f"it holds: {_listed(sorted(names)) or 'nothing'}",
        fix=f"name a folder with {SAFE.single}, or the file itself",
    )


def _part(path: Path) -> Mapping[str, torch.Tensor]:
    with explaining("read a file of weights", path):
        # Caches of downloads are full of links; where one leads is the business of who made it.
        real = path.resolve(strict=True)
        if not real.is_file():
            raise CheckpointError(f"{path} is no file", where=str(real))
    return read_safe(real) if path.suffix == SAFE.ending else read_pickled(real)


def _indexed(index: Path) -> Weights:
    places = _weight_map(index)
    parts: dict[Path, Mapping[str, torch.Tensor]] = {}
    for name in dict.fromkeys(places.values()):
        file = index.parent / name
        if not file.exists():
            lost = [key for key, value in places.items() if value == name]
            raise CheckpointError(
                f"The index names the file {name!r}, which is not there",
                where=f"{index}; in it would be: {_listed(lost)}",
                fix="copy or download the missing file, or save the model again",
            )
        parts[file] = _part(file)
    found: dict[str, Path] = {}
    for key, name in places.items():
        if key not in parts[index.parent / name]:
            raise _disagreement(index, f"{key!r} is not in {name!r}")
        found[key] = index.parent / name
    # Further names of a tensor, and what an index forgot: said by one file only, or nobody knows which.
    for file, part in parts.items():
        for key in part:
            if found.setdefault(key, file) != file and key not in places:
                raise _disagreement(index, f"{key!r} is in {found[key].name!r} and in {file.name!r}")
    return Weights(parts, found)


def _weight_map(index: Path) -> dict[str, str]:
    with explaining("read the index of the weights", index):
        real = index.resolve(strict=True)
        size = real.stat().st_size
        if not real.is_file() or size > _MOST_INDEX:
            raise CheckpointError(
                f"{index} is no index of weights: it is no file, or has {size:,} bytes", where=str(real)
            )
        text = real.read_bytes()
    value = parse(text, str(index))
    places = value.get("weight_map", value) if isinstance(value, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(
            "The index of the weights is no JSON object of names and files",
            where=str(index),
            fix="save the model again, or name another file",
        )
    for name in set(places.values()):
        try:
            inner_path(name)
        except CheckpointError as error:
            raise CheckpointError(
                f"The index of the weights names {name[:80]!r}, which is no path inside its folder",
                where=str(index),
                fix="do not use these weights: they are damaged, or were made to reach other files",
            ) from error
    return places


def _disagreement(index: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"The index of the weights and its files do not agree: {what}",
        where=str(index),
        fix="do not use these weights: files of several saves may be mixed; save or download them again",
    )


def _listed(names: list[str]) -> str:
    rest = f", and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(names[:_MOST_SHOWN]) + rest


__all__ = ["Weights", "read"]
