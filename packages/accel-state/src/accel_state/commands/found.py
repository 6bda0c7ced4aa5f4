"""What there is to say about a checkpoint, and where checkpoints are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from accel_core.errors import CheckpointError

from ..checkpoint.address import is_uri
from ..checkpoint.manifest import Manifest
from ..checkpoint.verify import Verify


@dataclass(frozen=True, slots=True)
class Found:
    """What the manifest of a checkpoint says, and what is wrong with it; None where there is no manifest."""

    path: str
    name: str
    checked: str
    faults: tuple[str, ...]
    number: int | None = None
    manifest: Manifest | None = None

    @property
    def good(self) -> bool:
        """Return whether nothing is wrong with it, as far as it was looked at."""
        return not self.faults

    @property
    def step(self) -> int | None:
        """Return the number of updates when it was saved."""
        return None if self.manifest is None else self.manifest.step

    @property
    def size(self) -> int | None:
        """Return the bytes of its files."""
        return None if self.manifest is None else self.manifest.size

    @property
    def time(self) -> str | None:
        """Return when it was committed."""
        return None if self.manifest is None else self.manifest.time

    @property
    def world_size(self) -> int | None:
        """Return on how many processes it was saved."""
        return None if self.manifest is None else self.manifest.world_size

    def facts(self) -> dict[str, Any]:
        """Return what programs are told."""
        return {
            "name": self.name,
            "path": self.path,
            "number": self.number,
            "step": self.step,
            "size": self.size,
            "time": self.time,
            "world_size": self.world_size,
            "writer": None if self.manifest is None else self.manifest.writer,
            "checked": self.checked,
            "verified": self.good,
            "faults": list(self.faults),
        }


class Shelf(Protocol):
    """A place with checkpoints, local or remote; each is whatever it lists."""

    def those(self, path: str) -> list[Any]:
        """Return the checkpoint at ``path``, or those in it, oldest first. Raises CheckpointError."""
        ...

    def one(self, path: str) -> Any:
        """Return the checkpoint at ``path``; raise CheckpointError when there is none."""
        ...

    def beside(self, each: Any) -> list[Any]:
        """Return all checkpoints of the folder that ``each`` is in, oldest first."""
        ...

    def surplus(self, folder: str, keep: int) -> list[Any]:
        """Return those of ``folder`` that are older than the ``keep`` newest good ones."""
        ...

    def look(self, each: Any, verify: Verify) -> Found:
        """Return what there is to say about it."""
        ...

    def remove(self, each: Any) -> None:
        """Remove it."""


def shelf_of(path: str) -> Shelf:
    """Return what knows the checkpoints at ``path``, a folder or a URI."""
    if is_uri(path):
        # It brings torch, and a network is slower still.
        from .remote import RemoteShelf

        return RemoteShelf(path)
    from .local import LocalShelf

    return LocalShelf()


def newest_good(found: Iterable[Found]) -> Found | None:
    """Return the last one with which nothing is wrong."""
    return next((each for each in reversed(list(found)) if each.good), None)


def no_folder(path: str) -> CheckpointError:
    """Return the error for a folder of checkpoints that is not there."""
    return CheckpointError(f"There is no folder {path}", fix="name the folder that holds the checkpoints")


__all__ = ["Found", "Shelf", "newest_good", "no_folder", "shelf_of"]
