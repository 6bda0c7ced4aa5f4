"""One rank's part of a checkpoint that is being written."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from accel_core import plain_json
from accel_core.errors import CheckpointError
from accel_core.paths import open_to_read
from accel_core.trouble import explaining

from .contents import plain_files
from .files import Files
from .hashing import read_hash, written
from .manifest import Entry, FileRecord, TensorRecord
from .naming import MANIFEST, fit
from .places import Lock
from .sharing import plan
from .tensor_file import pieces


@dataclass(slots=True)
class Part:
    """What one rank has written: entries by name, files by path inside the checkpoint."""

    entries: dict[str, Entry] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)


class CheckpointSink:
    """Where one rank writes; `CheckpointStore.begin` makes it, and its ``commit`` or ``abort`` ends it.

    What is written straight into ``folder`` becomes part of the checkpoint too: hashed and committed, but
    under no name. Links are refused. Not for several threads at once.
    """

    def __init__(self, files: Files, folder: Path, target: Path, lock: Lock | None, step: int | None) -> None:
        self.folder = folder
        """The uncommitted checkpoint."""
        self.target = target
        """Where it will be when it is committed."""
        self.step = step
        self.part = Part()
        self._files = files
        self._lock = lock
        self._open = True

    def __repr__(self) -> str:
        return f"<CheckpointSink for {self.target}, {len(self.part.entries)} names>"

    def tensors(self, name: str, values: Mapping[str, torch.Tensor]) -> None:
        """Store tensors by name in ``<name>.safetensors``. Those that share memory share it when read.

        Raises CheckpointError for what is no plain tensor with values, and when writing fails.
        """
        path = self._claim(name, ".safetensors")
        where = f"tensors {name!r}"
        found = plan(values, where)
        views = {
            key: TensorRecord(_dtype(view.dtype), view.shape, view.of, view.offset, view.stride)
            for key, view in found.views.items()
        }
        carriers = {
            key: TensorRecord(_dtype(tensor.dtype), tuple(tensor.shape))
            for key, tensor in found.carriers.items()
        }
        self._write(path, pieces(found.carriers))
        everything = carriers | views
        self.part.entries[name] = Entry(
            "tensors",
            path,
            {key: everything[key] for key in values},
            {key: carriers[key] for key in sorted(found.hidden)},
        )

    def json(self, name: str, value: Any) -> None:
        """Store a value in ``<name>.json``; raise CheckpointError for what JSON would change."""
        path = self._claim(name, ".json")
        self._write(path, iter([memoryview(plain_json.encode(value, f"json {name!r}"))]))
        self.part.entries[name] = Entry("json", path)

    def directory(self, name: str) -> Path:
        """Return a folder for files of the caller's own. Ranks that ask for one name get one folder."""
        path = self._claim(name, "")
        folder = self.folder / path
        with explaining("make a folder of the checkpoint", folder):
            self._parents(folder)
            if not folder.is_dir():
                self._make(folder)
        self.part.entries[name] = Entry("folder", path)
        return folder

    # -- for the store ---------------------------------------------------------------------------

    def finish(self) -> Part:
        """Return what was written, and take no more."""
        self._alive()
        self._open = False
        return self.part

    def release(self) -> None:
        """Let go of the lock; the folder is somebody else's from now on."""
        self._open = False
        if self._lock is not None:
            self._lock.release()

    def loose(self, known: Collection[str]) -> list[str]:
        """Return the files that lie in the folder and are not in ``known``. Links are refused."""
        return [path for path in plain_files(self.folder) if path not in known and path != MANIFEST]

    def adopt(self, paths: list[str]) -> dict[str, FileRecord]:
        """Flush and hash files that somebody else wrote."""
        found: dict[str, FileRecord] = {}
        for path in paths:
            file = self.folder / path
            with explaining("read back a file of the checkpoint", file):
                descriptor = open_to_read(file)
                try:
                    self._files.sync(descriptor)
                finally:
                    os.close(descriptor)
                found[path] = FileRecord(*read_hash(file))
        return found

    # -- inside ----------------------------------------------------------------------------------

    def _alive(self) -> None:
        if not self._open:
            raise CheckpointError(
                "This checkpoint was committed or given up before",
                where=str(self.target),
                fix="begin another one",
            )

    def _claim(self, name: str, ending: str) -> str:
        self._alive()
        path = fit(name) + ending
        if name in self.part.entries:
            raise CheckpointError(f"The name {name!r} was written before", fix="write every name once")
        if path.casefold() == MANIFEST:
            raise CheckpointError(
                f"The name {name!r} is that of the store's own file {MANIFEST}", fix="take another name"
            )
        return path

    def _write(self, path: str, data: Iterator[memoryview]) -> None:
        file = self.folder / path
        with explaining("make a folder of the checkpoint", file):
            self._parents(file)
        self.part.files[path] = FileRecord(*written(self._files, file, data))

    def _parents(self, path: Path) -> None:
        for parent in reversed(path.relative_to(self.folder).parents[:-1]):
            if not (self.folder / parent).is_dir():
                self._make(self.folder / parent)

    def _make(self, folder: Path) -> None:
        try:
            self._files.make_folder(folder)
        except FileExistsError:
            # Another rank was faster.
            if not folder.is_dir():
                raise


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


__all__ = ["CheckpointSink", "Part"]
