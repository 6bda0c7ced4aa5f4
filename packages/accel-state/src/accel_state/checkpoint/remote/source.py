"""What a remote checkpoint holds: fetched when it is asked for, verified on arrival."""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accel_core import plain_json
from accel_core.errors import CheckpointError
from accel_core.trouble import explaining

from ..address import child, shown
from ..hashing import digest
from ..manifest import Entry, Kind, Manifest
from ..placing import placed
from ..source import StoredTensors
from .listing import faults, manifest_of
from .objects import Objects
from .record import Commit
from .rooms import Room, alone, enter, sweep
from .threads import in_threads
from .transfer import DOWNLOADS, download, present
from .trouble import DamagedError

_MOST_SHOWN = 10


class RemoteSource:
    """A committed checkpoint behind a URI. Its files come to a folder of this machine, each once.

    The folder goes when nobody uses it any more; ``directory`` returns a part of it, so keep the source as
    long as that is read. Tensors keep it by themselves.
    """

    def __init__(self, objects: Objects, uri: str, commit: Commit, root: Path, token: str = "") -> None:
        """Read the manifest; sources of one ``token``, on several ranks, have their files in one folder."""
        self.path = uri
        self.commit = commit
        self.manifest: Manifest = manifest_of(objects, uri, commit)
        self._objects = objects
        name = f"read-{token or secrets.token_hex(8)}"
        sweep(root, name)
        self.room: Room = enter(root, name)
        self._known: set[str] = set()
        self._end = weakref.finalize(self, self.room.release)

    def __repr__(self) -> str:
        return f"<RemoteSource {shown(self.path)}, {len(self.manifest.entries)} names>"

    def names(self) -> list[str]:
        """Return every name that was stored, sorted."""
        return sorted(self.manifest.entries)

    def tensors(self, name: str) -> StoredTensors:
        """Return the tensors stored under ``name``, on the CPU. Each call maps the file anew."""
        entry = self._entry(name, "tensors")
        self.fetch([entry.path])
        result = StoredTensors(self._folder / entry.path, entry, placed(self._folder, entry))
        # The file is mapped on first use, and must be there until then.
        weakref.finalize(result, _kept, self)
        return result

    def json(self, name: str) -> Any:
        """Return the value stored under ``name``."""
        entry = self._entry(name, "json")
        self.fetch([entry.path])
        path = self._folder / entry.path
        with explaining("read a file of the checkpoint", path):
            text = path.read_bytes()
        return plain_json.parse(text, str(path))

    def directory(self, name: str) -> Path:
        """Return a folder of this machine with all files that the ranks wrote into theirs of this name."""
        entry = self._entry(name, "folder")
        self.fetch([path for path in self.manifest.files if path.startswith(f"{entry.path}/")])
        folder = self._folder / entry.path
        with explaining("make a folder for parts of a checkpoint", folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def local(self) -> Path:
        """Return a folder of this machine with all files, also those that belong to no name."""
        self.fetch(self.manifest.files)
        return self._folder

    # -- for the store ---------------------------------------------------------------------------

    def check_sizes(self) -> None:
        """Raise DamagedError when a file is missing or has another size."""
        found = faults(self._objects, self.path, self.commit, self.manifest)
        if found:
            rest = f"; and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
            raise DamagedError(
                f"The checkpoint {shown(self.path)} is damaged: {'; '.join(found[:_MOST_SHOWN])}{rest}",
                where=shown(self.path),
                fix="use the checkpoint before it: latest() does",
            )

    def fetch(self, paths: Iterable[str]) -> None:
        """Have files here and verified; raise DamagedError when they are not as they were saved."""
        files = self.manifest.files
        missing = [path for path in paths if path not in self._known or not (self._folder / path).exists()]
        ordered = sorted(missing, key=lambda path: (-files[path].size, path))
        in_threads(self._fetch, ordered, DOWNLOADS)

    def check_headers(self) -> None:
        """Raise DamagedError when a file of tensors that is here contradicts the manifest."""
        for entry in self.manifest.entries.values():
            if entry.kind == "tensors" and entry.path in self._known:
                try:
                    placed(self._folder, entry)
                except CheckpointError as error:
                    raise DamagedError(error.what, where=error.where, fix=error.fix) from error

    def share(self, rank: int, world_size: int) -> list[str]:
        """Return the files that one of several ranks verifies for all."""
        files = self.manifest.files
        return sorted(files, key=lambda path: (-files[path].size, path))[rank::world_size]

    def trust(self, paths: Iterable[str]) -> None:
        """Take files for verified that another process verified in the same room."""
        self._known.update(paths)

    # -- inside ----------------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        return self.room.path / "files"

    def _fetch(self, path: str) -> None:
        record = self.manifest.files[path]
        lock = self.room.path / f"lock-{digest(path.encode())}"
        with explaining("lock a file of the checkpoint", lock):
            holding = alone(lock)
        with holding:
            if not present(self._folder / path, record):
                uri = child(child(self.path, self.commit.folder), path)
                download(self._objects, uri, self._folder / path, record, self.manifest.algorithm)
        self._known.add(path)

    def _entry(self, name: str, kind: Kind) -> Entry:
        return self.manifest.entry(name, kind, shown(self.path))


def _kept(_source: RemoteSource) -> None:
    """Do nothing; who is to call it with a source keeps the source until then."""


__all__ = ["RemoteSource"]
