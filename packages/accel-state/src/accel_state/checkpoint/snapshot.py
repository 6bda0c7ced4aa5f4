"""State as it is now, copied to the memory of the host, to be written while training goes on."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from accel_core import plain_json
from accel_core.errors import CheckpointError
from accel_core.protocols import StateSink
from accel_core.trouble import explaining

from .address import is_uri
from .contents import plain_files
from .files import Files, remove_tree
from .memory import HostMemory
from .naming import fit
from .places import Lock, claim
from .sharing import Plan, plan

Tensors = dict[str, torch.Tensor]


class SnapshotSink:
    """A `StateSink` that copies what it is given, at once; ``replay`` writes it into another sink later.

    ``memory``: where the copies go; that of an earlier snapshot is used again, which ends that one.
    ``near``: a checkpoint on this machine's file systems; what components write by themselves then
    waits beside it and is moved, not copied, by ``replay``. Otherwise, and where it is a URI, it waits
    among temporary files.
    """

    def __init__(self, memory: HostMemory | None = None, *, near: str | Path | None = None) -> None:
        self._memory = memory if memory is not None else HostMemory()
        self._lease = self._memory.start()
        self._near = near
        self._kept: dict[str, Tensors | bytes | Path] = {}
        self._devices: set[torch.device] = set()
        self._scratch: Path | None = None
        self._lock: Lock | None = None
        self._state = "open"

    def __repr__(self) -> str:
        return f"<SnapshotSink, {self._state}, {len(self._kept)} names>"

    # -- taking ----------------------------------------------------------------------------------

    def tensors(self, name: str, values: Mapping[str, torch.Tensor]) -> None:
        """Copy the tensors. Those that share memory are copied once, and their copies share it.

        Copies from a device are under way until ``seal``. Raises CheckpointError for what cannot be stored.
        """
        self._check(name)
        where = f"tensors {name!r}"
        found = plan(values, where)
        copies = {key: self._copied(name, key, tensor) for key, tensor in found.carriers.items()}
        # In the order they were given: it decides which name stands for shared memory.
        self._kept[name] = {key: _placed(key, copies, found) for key in values}

    def json(self, name: str, value: Any) -> None:
        """Take the value as it is now; raise CheckpointError for what JSON would change."""
        self._check(name)
        self._kept[name] = plain_json.encode(value, f"json {name!r}")

    def directory(self, name: str) -> Path:
        """Return an empty folder. What is in it when ``replay`` comes is moved into the checkpoint."""
        self._check(name)
        scratch = self._folder()
        folder = scratch / fit(name)
        with explaining("make a folder of the checkpoint", folder):
            folder.mkdir(parents=True)
        self._kept[name] = folder
        return folder

    def seal(self) -> None:
        """Wait until the copies are complete, and take no more. Links in folders are refused."""
        if self._state != "open":
            return
        for device in self._devices:
            torch.get_device_module(device).synchronize()
        for kept in self._kept.values():
            if isinstance(kept, Path):
                plain_files(kept)
        self._memory.end()
        self._state = "sealed"

    # -- giving ----------------------------------------------------------------------------------

    def replay(self, sink: StateSink) -> None:
        """Write everything into ``sink``, under the same names. Once, because folders are moved."""
        self._alive()
        self.seal()
        for name, kept in self._kept.items():
            if isinstance(kept, dict):
                sink.tensors(name, kept)
            elif isinstance(kept, bytes):
                sink.json(name, plain_json.parse(kept, f"json {name!r}"))
            else:
                move_into(kept, sink.directory(name))

    def release(self) -> None:
        """Give the memory back for the next snapshot, and remove what waits in folders."""
        self._state = "ended"
        self._kept.clear()
        if self._scratch is not None:
            with suppress(OSError):
                remove_tree(Files(), self._scratch)
            self._scratch = None
        if self._lock is not None:
            self._lock.release()

    # -- inside ----------------------------------------------------------------------------------

    def _check(self, name: object) -> None:
        self._alive()
        if self._state != "open":
            raise CheckpointError("This snapshot is complete", fix="write before it is submitted")
        if fit(name) in self._kept:
            raise CheckpointError(f"The name {name!r} was written before", fix="write every name once")

    def _alive(self) -> None:
        if self._state == "ended" or self._lease != self._memory.lease:
            raise CheckpointError(
                "This snapshot has ended, and its memory is that of a later one", fix="take another snapshot"
            )

    @torch.no_grad()
    def _copied(self, name: str, key: str, tensor: torch.Tensor) -> torch.Tensor:
        copy = self._memory.take((name, key), tensor)
        if tensor.device.type != "cpu":
            self._devices.add(tensor.device)
        try:
            copy.copy_(tensor, non_blocking=True)
        except NotImplementedError:
            # Dtypes of less than a byte can be stored, but torch does not copy them.
            _bytes(copy).copy_(_bytes(tensor.contiguous()), non_blocking=True)
        return copy

    def _folder(self) -> Path:
        if self._scratch is None:
            if self._near is None or is_uri(str(self._near)):
                self._scratch = Path(tempfile.mkdtemp(prefix="accel-snapshot-"))
            else:
                target = Path(os.path.realpath(self._near))
                with explaining("make the folder of the checkpoints", target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    # Of the kind that the next save removes if this process is killed.
                    self._scratch, self._lock = claim(Files(), target)
        return self._scratch


def _placed(key: str, copies: Tensors, found: Plan) -> torch.Tensor:
    """Return the copy of a tensor, inside the copy of the memory that it shares."""
    view = found.views.get(key)
    if view is None:
        return copies[key]
    storage = copies[view.of].untyped_storage()
    empty = torch.empty(0, dtype=view.dtype, device="cpu")
    return empty.set_(storage, view.offset // view.dtype.itemsize, view.shape, view.stride)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def move_into(source: Path, target: Path) -> None:
    """Move all that is in the folder ``source`` to the folder ``target``, replacing nothing.

    Raises CheckpointError for a file that is there already, which another rank wrote, and for links.
    """
    for path in plain_files(source):
        place = target / path
        with explaining("move a file into the checkpoint", place):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Unlike a rename it never replaces what another rank has put there.
                os.link(source / path, place)
            except FileExistsError:
                raise
            except OSError:
                # Another file system, or one without links.
                with (source / path).open("rb") as old, place.open("xb") as new:
                    shutil.copyfileobj(old, new, 8 << 20)


__all__ = ["SnapshotSink", "move_into"]
