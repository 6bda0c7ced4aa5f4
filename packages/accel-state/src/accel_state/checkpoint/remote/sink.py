"""One rank's part of a remote checkpoint: written to this machine first, sent when all have written."""

from __future__ import annotations

from pathlib import Path

from accel_core.errors import CheckpointError

from ..address import shown
from ..files import Files
from ..sink import CheckpointSink, Part
from .rooms import Room


class Unflushed(Files):
    """What is only on its way to elsewhere need not survive a loss of power."""

    def sync(self, file: int) -> None:
        """Do nothing."""

    def sync_folder(self, path: Path) -> None:
        """Do nothing."""


class RemoteSink(CheckpointSink):
    """Where one rank writes; `RemoteStore.begin` makes it, and its ``commit`` or ``abort`` ends it.

    ``directory`` is a folder of this rank alone, as there is no file system that all ranks see: their files
    come together in the checkpoint, and two ranks cannot write one file.
    """

    def __init__(self, room: Room, uri: str, token: str, step: int | None) -> None:
        folder = room.path / "files"
        super().__init__(Unflushed(), folder, folder, None, step)
        self.uri = uri
        self.token = token
        self._room = room

    def __repr__(self) -> str:
        return f"<RemoteSink for {shown(self.uri)}, {len(self.part.entries)} names>"

    def finish(self) -> Part:
        """Return what was written here, also by components themselves, and take no more."""
        part = super().finish()
        part.files |= self.adopt(self.loose(part.files))
        return part

    def release(self) -> None:
        """Remove what was written to this machine."""
        super().release()
        self._room.release()

    def _alive(self) -> None:
        try:
            super()._alive()
        except CheckpointError as error:
            raise CheckpointError(error.what, where=shown(self.uri), fix=error.fix) from error


__all__ = ["RemoteSink"]
