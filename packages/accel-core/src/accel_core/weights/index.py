"""Which files hold the weights of a model: found without torch, and nothing outside of what is named."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import CheckpointError
from ..paths import inner_path
from ..plain_json import parse
from ..trouble import explaining
from .layout import FAMILIES, SAFE

T = TypeVar("T")
_MOST_INDEX = 128 << 20
_MOST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Files of weights. ``places``: the file of each name, by the index ``source``; None without an index."""

    source: Path
    files: tuple[Path, ...]
    places: Mapping[str, Path] | None

    def assign(self, names: Mapping[Path, Collection[str]]) -> dict[str, Path]:
        """Return the file of every name, given which ``names`` each file holds.

        Raises CheckpointError when the index says what its files do not.
        """
        if self.places is None:
            return {name: file for file in self.files for name in names[file]}
        for key, file in self.places.items():
            if key not in names[file]:
                raise _disagreement(self.source, f"{key!r} is not in {file.name!r}")
        found = dict(self.places)
        # Further names of a tensor, and what an index forgot: said by one file only, or nobody knows which.
        for file in self.files:
            for key in names[file]:
                if found.setdefault(key, file) != file and key not in self.places:
                    raise _disagreement(
                        self.source, f"{key!r} is in {found[key].name!r} and in {file.name!r}"
                    )
        return found


class Spread(Mapping[str, T]):
    """Values by name out of several files: ``parts`` is what each holds, ``places`` the file of each name."""

    def __init__(self, parts: Mapping[Path, Mapping[str, T]], places: Mapping[str, Path]) -> None:
        self.files = tuple(parts)
        self._parts = parts
        self._places = places

    def __getitem__(self, name: str) -> T:
        return self._parts[self._places[name]][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {len(self)} tensors in {len(self.files)} files>"


def locate(path: str | os.PathLike[str]) -> WeightFiles:
    """Return the files that ``path`` stands for: a folder, one file of weights, or an index of several.

    In a folder, the first of ``model.safetensors``, its index, ``pytorch_model.bin``, its index, or the only
    other file called ``index.json`` or ``*.index.json``. An index is a JSON object of names and files, alone
    or under ``weight_map``.

    Raises CheckpointError for files that are missing, and for an index that leads out of its folder.
    """
    given = Path(path)
    with explaining("read the weights", given):
        found = _found(given) if given.is_dir() else given
        if not found.exists():
            raise CheckpointError(f"There is no file {found}", fix="check the path")
    if found.suffix != ".json":
        return WeightFiles(found, (found,), None)
    places = read_places(found)
    for name in dict.fromkeys(places.values()):
        if not (found.parent / name).exists():
            lost = [key for key, value in places.items() if value == name]
            raise CheckpointError(
                f"The index names the file {name!r}, which is not there",
                where=f"{found}; in it would be: {_listed(lost)}",
                fix="copy or download the missing file, or save the model again",
            )
    files = tuple(found.parent / name for name in dict.fromkeys(places.values()))
    return WeightFiles(found, files, {key: found.parent / name for key, name in places.items()})


def real_file(path: Path) -> Path:
    """Return the file of weights that ``path`` leads to; raise CheckpointError where it leads to none."""
    with explaining("read a file of weights", path):
        # Caches of downloads are full of links; where one leads is the business of who made it.
        real = path.resolve(strict=True)
        if not real.is_file():
            raise CheckpointError(f"{path} is no file", where=str(real))
    return real


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


def read_places(index: Path) -> dict[str, str]:
    """Return the file of each name, relative to the index. Raises CheckpointError for one that misleads."""
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


__all__ = ["Spread", "WeightFiles", "locate", "read_places", "real_file"]
