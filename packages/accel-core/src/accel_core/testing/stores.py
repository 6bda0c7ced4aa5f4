"""A checkpoint store in memory: what strategies write to and read from in tests."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_core.errors import CheckpointError

if TYPE_CHECKING:
    import torch


class MemoryStore:
    """What was written, by name. It pickles, so ranks can return theirs and be merged."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        """Where components that write their own files may; without it they are refused."""
        self.tensors: dict[str, dict[str, torch.Tensor]] = {}
        self.values: dict[str, str] = {}
        self.directories: dict[str, Path] = {}

    def names(self) -> list[str]:
        """Return every name, sorted."""
        return sorted({*self.tensors, *self.values, *self.directories})

    def merged(self, others: Iterable[MemoryStore]) -> MemoryStore:
        """Return one store of this and ``others``; raise CheckpointError when two wrote the same name."""
        result = MemoryStore(self.folder)
        for store in (self, *others):
            twice = set(result.names()).intersection(store.names())
            if twice:
                raise CheckpointError(
                    f"Two ranks wrote {', '.join(sorted(twice))}", fix="make the names unique over ranks"
                )
            result.tensors |= store.tensors
            result.values |= store.values
            result.directories |= store.directories
        return result

    def sink(self) -> MemorySink:
        """Return what writes into this store."""
        return MemorySink(self)

    def source(self) -> MemorySource:
        """Return what reads this store."""
        return MemorySource(self)


class MemorySink:
    """A `StateSink` that keeps copies, as a file would, and refuses what a file could not hold."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store if store is not None else MemoryStore()

    def tensors(self, name: str, values: Mapping[str, torch.Tensor]) -> None:
        """Keep copies of the tensors."""
        self._claim(name)
        # One deep copy of all keeps memory that tensors share shared.
        self.store.tensors[name] = copy.deepcopy({key: value.detach() for key, value in values.items()})

    def json(self, name: str, value: Any) -> None:
        """Keep the value as JSON text; raise CheckpointError when it would not come back equal."""
        self._claim(name)
        try:
            text = json.dumps(value)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"The value {name!r} is not JSON: {error}",
                fix="use dicts with string keys, lists, strings, numbers, booleans and None",
            ) from error
        if json.loads(text) != value:
            raise CheckpointError(
                f"The value {name!r} comes back from JSON as something else",
                fix="use string keys and lists instead of other keys and tuples",
            )
        self.store.values[name] = text

    def directory(self, name: str) -> Path:
        """Return an empty folder."""
        self._claim(name)
        if self.store.folder is None:
            raise CheckpointError(
                f"This store in memory has no folder for {name!r}", fix="MemoryStore(tmp_path)"
            )
        folder = self.store.folder / name
        folder.mkdir(parents=True)
        self.store.directories[name] = folder
        return folder

    def _claim(self, name: str) -> None:
        if name in self.store.names():
            raise CheckpointError(f"The name {name!r} was written before", fix="write every name once")


class MemorySource:
    """A `StateSource` over a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store

    def names(self) -> Iterable[str]:
        """Return every name that was stored."""
        return self.store.names()

    def tensors(self, name: str) -> Mapping[str, torch.Tensor]:
        """Return copies of the tensors."""
        self._present(name, self.store.tensors)
        return copy.deepcopy(self.store.tensors[name])

    def json(self, name: str) -> Any:
        """Return a stored value."""
        self._present(name, self.store.values)
        return json.loads(self.store.values[name])

    def directory(self, name: str) -> Path:
        """Return the folder that was written."""
        self._present(name, self.store.directories)
        return self.store.directories[name]

    def _present(self, name: str, where: Mapping[str, object]) -> None:
        if name not in where:
            raise CheckpointError(
                f"Nothing of this kind is stored as {name!r}",
                fix=f"stored are: {', '.join(self.store.names())}",
            )


__all__ = ["MemorySink", "MemorySource", "MemoryStore"]
