"""Checkpoints in folders, without torch."""

from __future__ import annotations

from pathlib import Path

from accel_core.errors import CheckpointError

from ..checkpoint.files import Files
from ..checkpoint.listing import Listed, checkpoints
from ..checkpoint.located import located, remove
from ..checkpoint.places import committed
from ..checkpoint.rotation import surplus
from ..checkpoint.verify import Verify, faults
from .found import Found, no_folder


class LocalShelf:
    """Folders of a file system. See `Shelf`."""

    def those(self, path: str) -> list[Listed]:
        """Return the checkpoint at ``path``, or those in it."""
        folder = Path(path)
        return [self.one(path)] if committed(folder) or not folder.is_dir() else checkpoints(folder)

    def one(self, path: str) -> Listed:
        """Return the checkpoint at ``path``."""
        folder = located(Path(path))
        found = (each for each in checkpoints(folder.parent) if each.path == folder)
        return next(found, Listed(folder, None))

    def beside(self, each: Listed) -> list[Listed]:
        """Return all checkpoints of its folder."""
        return checkpoints(each.path.parent)

    def surplus(self, folder: str, keep: int) -> list[Listed]:
        """Return those that are older than the ``keep`` newest good ones."""
        if not Path(folder).is_dir():
            raise no_folder(folder)
        found = checkpoints(Path(folder))
        gone = set(surplus(found, keep))
        return [each for each in found if each.path in gone]

    def look(self, each: Listed, verify: Verify) -> Found:
        """Return what there is to say about it."""
        path, name = str(each.path), each.path.name
        try:
            manifest = each.manifest()
        except CheckpointError as error:
            return Found(path, name, verify, (f"manifest.json: {error.what}",), each.number)
        wrong = faults(each.path, manifest, verify)
        if each.number is None:
            wrong = ["manifest.json: its first lines are not those of a manifest", *wrong]
        return Found(path, name, verify, tuple(wrong), each.number, manifest)

    def remove(self, each: Listed) -> None:
        """Remove it."""
        remove(Files(), each.path)


__all__ = ["LocalShelf"]
