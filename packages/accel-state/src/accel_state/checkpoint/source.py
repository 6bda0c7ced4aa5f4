"""What a verified checkpoint holds, read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from accel_core import plain_json
from accel_core.errors import CheckpointError
from accel_core.trouble import explaining
from accel_core.weights.header import Place

from .manifest import Entry, Kind, Manifest
from .placing import placed
from .reading import read_parts


class CheckpointSource:
    """A committed checkpoint whose files were found to be as its manifest says."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Take a folder that was verified; raise CheckpointError when a file of tensors contradicts it."""
        self.path = folder
        self.manifest = manifest
        self._places = {
            name: placed(folder, entry) for name, entry in manifest.entries.items() if entry.kind == "tensors"
        }

    def __repr__(self) -> str:
        return f"<CheckpointSource {self.path}, {len(self.manifest.entries)} names>"

    def names(self) -> list[str]:
        """Return every name that was stored, sorted."""
        return sorted(self.manifest.entries)

    def tensors(self, name: str) -> StoredTensors:
        """Return the tensors stored under ``name``, on the CPU. Each call maps the file anew."""
        entry = self._entry(name, "tensors")
        return StoredTensors(self.path / entry.path, entry, self._places[name])

    def json(self, name: str) -> Any:
        """Return the value stored under ``name``."""
        path = self.path / self._entry(name, "json").path
        with explaining("read a file of the checkpoint", path):
            text = path.read_bytes()
        return plain_json.parse(text, str(path))

    def directory(self, name: str) -> Path:
        """Return the folder that a component wrote."""
        return self.path / self._entry(name, "folder").path

    def _entry(self, name: str, kind: Kind) -> Entry:
        return self.manifest.entry(name, kind, str(self.path))


class StoredTensors(Mapping[str, torch.Tensor]):
    """Tensors by name, mapped from a file: a page is read when it is used, and a change stays in memory.

    Within one such mapping, tensors that shared memory share it, and asking twice gives the same memory.
    """

    def __init__(self, path: Path, entry: Entry, places: Mapping[str, Place]) -> None:
        self._path = path
        self._entry = entry
        self._places = places
        self._storages: dict[str, torch.UntypedStorage] = {}
        self._whole: Any = None

    def __getitem__(self, name: str) -> torch.Tensor:
        record = self._entry.tensors[name]
        carrier = record.of if record.of is not None else name
        dtype = record.torch_dtype(str(self._path))
        storage = self._storage(carrier)
        stride = record.stride if record.of is not None else _contiguous(record.shape)
        if 0 in record.shape:
            return torch.empty(record.shape, dtype=dtype)
        if record.offset % dtype.itemsize:
            raise CheckpointError(
                f"{name!r} begins at byte {record.offset} of {carrier!r}: no place for {record.dtype}",
                where=str(self._path),
            )
        return torch.empty(0, dtype=dtype).set_(
            storage, record.offset // dtype.itemsize, record.shape, stride
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._entry.tensors)

    def __len__(self) -> int:
        return len(self._entry.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._entry.tensors

    def __repr__(self) -> str:
        return f"<{len(self)} tensors in {self._path}>"

    def read_into(self, targets: Mapping[str, torch.Tensor]) -> list[str]:
        """Read tensors by name into ``targets``, and return the names of those for which that can be done.

        It can for a target of the stored shape and dtype that lies in one piece in the memory of the CPU.
        No page of the file is mapped for it.
        """
        wanted = {}
        for name, target in targets.items():
            record, place = self._entry.tensors[name], self._places.get(name)
            plain = target.is_cpu and target.is_contiguous() and not target.is_conj() and not target.is_neg()
            alike = record.shape == tuple(target.shape) and f"torch.{record.dtype}" == str(target.dtype)
            if place is None or record.of is not None or not (plain and alike):
                continue
            if place.end - place.begin == target.numel() * target.element_size():
                wanted[name] = (place.begin, target)
        read_parts(self._path, wanted.values())
        return list(wanted)

    def _storage(self, carrier: str) -> torch.UntypedStorage:
        if carrier not in self._storages:
            place = self._places[carrier]
            part = self._mapped()[place.begin : place.end]
            # Bytes that carry wider types may lie where none of those may begin.
            self._storages[carrier] = part.clone() if place.begin % self._widths[carrier] else part
        return self._storages[carrier]

    @cached_property
    def _widths(self) -> dict[str, int]:
        """Return the bytes of the widest type that is looked for in each carrier."""
        found: dict[str, int] = {}
        for key, record in self._entry.tensors.items():
            carrier = record.of if record.of is not None else key
            found[carrier] = max(found.get(carrier, 1), record.torch_dtype(str(self._path)).itemsize)
        return found

    def _mapped(self) -> Any:
        if self._whole is None:
            with explaining("map a file of the checkpoint", self._path):
                size = self._path.stat().st_size
            # Not shared: pages that are written to become the process's own.
            mapped: Any = torch.UntypedStorage.from_file(str(self._path), False, size)
            self._whole = mapped
        return self._whole


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    result: list[int] = []
    step = 1
    for size in reversed(shape):
        result.append(step)
        step *= size
    return tuple(reversed(result))


__all__ = ["CheckpointSource", "StoredTensors"]
