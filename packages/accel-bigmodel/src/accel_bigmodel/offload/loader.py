"""Offloaded weights by name, wherever each of them lies."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from accel_core.errors import CheckpointError, ConfigError, Fault
from accel_core.paths import shown
from accel_core.weights.index import real_file

from ..weights.mapped import MappedFile
from .folder import INDEX, described_dtype, load_offloaded_weight, read_index, weight_path

SAFE_FILE = "safetensors_file"


class OffloadedWeightsLoader(Mapping[str, torch.Tensor]):
    """Tensors by name: those of ``state_dict``, and those that an index describes.

    ``save_folder``: a folder of offloaded weights, with its index unless ``index`` is given. ``device``:
    where tensors go that come out of files; None leaves them mapped on the CPU, where the same name gives
    the same memory again. Paths that an index file names must lie in its folder; ``index`` may name any.

    Raises ConfigError when nothing is given, CheckpointError as `accel_bigmodel.load_offloaded_weight`.
    """

    def __init__(
        self,
        state_dict: dict[str, torch.Tensor] | None = None,
        save_folder: str | os.PathLike[str] | None = None,
        index: Mapping[str, Any] | None = None,
        device: torch.device | str | int | None = None,
    ) -> None:
        if state_dict is None and save_folder is None and index is None:
            fault = Fault(
                "state_dict", None, "is missing, and so are save_folder and index", "give one of them"
            )
            raise ConfigError("offloaded weights", [fault])
        self.state_dict = {} if state_dict is None else state_dict
        self.save_folder = save_folder
        self._trusted = index is not None
        if index is None:
            index = {} if save_folder is None else read_index(Path(save_folder) / INDEX)
        self.index = index
        self.device = device
        self.all_keys = list(self.state_dict)
        self.all_keys.extend(name for name in index if name not in self.state_dict)
        self._start()

    def _start(self) -> None:
        self._mapped: dict[str, torch.Tensor] = {}
        self._files: dict[Path, MappedFile] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # A copy maps the files again.
        return {
            key: value for key, value in self.__dict__.items() if key not in {"_mapped", "_files", "_lock"}
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __getitem__(self, key: str) -> torch.Tensor:
        if key in self.state_dict:
            return self.state_dict[key]
        found = self._mapped.get(key)
        if found is None:
            found = self._read(key, self.index[key])
        return found if self.device is None else found.to(self.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self.all_keys)

    def __len__(self) -> int:
        return len(self.all_keys)

    def __contains__(self, key: object) -> bool:
        return key in self.state_dict or key in self.index

    def __repr__(self) -> str:
        return f"<OffloadedWeightsLoader, {len(self)} tensors>"

    def _read(self, key: str, info: Mapping[str, Any]) -> torch.Tensor:
        if not info.get(SAFE_FILE):
            found = load_offloaded_weight(self._file(key), info)
        else:
            path, name = self._safe(info)
            file = self._open(path)
            if name is None:
                name = key
            if name not in file:
                raise CheckpointError(
                    f"The index says that {shown(key)} is {shown(name)} of a file that does not have it",
                    where=str(path),
                )
            found = file[name]
            if info.get("dtype") is not None:
                dtype = described_dtype(info, path)
                if dtype != found.dtype:
                    # Not kept: it is a copy, as large as what was to be out of memory.
                    return found.to(dtype)
        with self._lock:
            return self._mapped.setdefault(key, found)

    def _file(self, key: str) -> Path:
        if self.save_folder is None:
            raise CheckpointError(
                f"The index describes {shown(key)} as a file of a folder that was not given",
                fix="give save_folder",
            )
        return weight_path(self.save_folder, key)

    def _safe(self, info: Mapping[str, Any]) -> tuple[Path, str | None]:
        given, name = info[SAFE_FILE], info.get("weight_name")
        if not isinstance(given, (str, os.PathLike)) or not (name is None or isinstance(name, str)):
            raise CheckpointError(
                f"The index of offloaded weights is wrong: it names {shown(name)} of {shown(given)}"
            )
        if self._trusted or self.save_folder is None:
            return real_file(Path(given)), name
        folder = Path(self.save_folder)
        real = real_file(folder / given)
        if not real.is_relative_to(folder.resolve()):
            raise CheckpointError(
                f"The index of offloaded weights names {shown(str(given))}, which is outside of its folder",
                where=str(folder / INDEX),
                fix="give the index itself, as index=, if you know where it comes from",
            )
        return real, name

    def _open(self, path: Path) -> MappedFile:
        with self._lock:
            if path not in self._files:
                self._files[path] = MappedFile(path)
            return self._files[path]

    def holder(self, key: str) -> tuple[dict[str, torch.Tensor], str] | None:
        """Return the dict and the key that a value is kept under; None for what lies in files."""
        return (self.state_dict, key) if key in self.state_dict else None

    def will_need(self, keys: Iterable[str]) -> None:
        """Ask the system to read the pages of these tensors ahead. Never fails."""
        wanted: dict[Path, list[str]] = {}
        for key in keys:
            info = self.index.get(key)
            if info is None or key in self.state_dict:
                continue
            try:
                if info.get(SAFE_FILE):
                    path, name = self._safe(info)
                    wanted.setdefault(path, []).append(name or key)
                else:
                    _read_ahead(self._file(key))
            except (CheckpointError, OSError):
                continue
        for path, names in wanted.items():
            try:
                self._open(path).will_need(names)
            except CheckpointError:
                continue


def _read_ahead(path: Path) -> None:
    advise = getattr(os, "posix_fadvise", None)
    if advise is None:
        return
    file = os.open(path, os.O_RDONLY)
    try:
        advise(file, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(file)


class PrefixedDataset(Mapping[str, torch.Tensor]):
    """The tensors of ``dataset`` whose names begin with ``prefix``, asked for without it.

    Its keys are the whole names, as the documents have it.
    """

    def __init__(self, dataset: Mapping[str, torch.Tensor], prefix: str) -> None:
        self.dataset = dataset
        self.prefix = prefix

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.dataset[self.prefix + key]

    def __iter__(self) -> Iterator[str]:
        return (key for key in self.dataset if key.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.prefix + key in self.dataset

    def __repr__(self) -> str:
        return f"<PrefixedDataset {self.prefix!r} of {self.dataset!r}>"

    def holder(self, key: str) -> tuple[dict[str, torch.Tensor], str] | None:
        """Return the dict and the key that a value is kept under; None for what lies in files."""
        return find_holder(self.dataset, self.prefix + key)

    def will_need(self, keys: Iterable[str]) -> None:
        """Ask the system to read the pages of these tensors ahead. Never fails."""
        ask = getattr(self.dataset, "will_need", None)
        if ask is not None:
            ask([self.prefix + key for key in keys])


def find_holder(source: Mapping[str, torch.Tensor], key: str) -> tuple[dict[str, torch.Tensor], str] | None:
    """Return the dict that ``source[key]`` is kept in, and its key there; None if it comes from elsewhere."""
    if isinstance(source, dict) and type(source).__getitem__ is dict.__getitem__:
        return (source, key) if key in source else None
    ask = getattr(source, "holder", None)
    return None if ask is None else ask(key)


__all__ = ["OffloadedWeightsLoader", "PrefixedDataset", "find_holder"]
