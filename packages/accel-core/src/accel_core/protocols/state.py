"""How state moves between live objects and a store, without either knowing the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from .strategy import Unit


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did, by name: restored, missing, left over, or of another shape."""

    restored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Return whether nothing is missing, unexpected or mismatched."""
        return not (self.missing or self.unexpected or self.mismatched)


@runtime_checkable
class StateSink(Protocol):
    """Where one rank puts its part of a checkpoint. Names are unique over all ranks of a save."""

    def tensors(self, name: str, values: Mapping[str, torch.Tensor]) -> None:
        """Store tensors by name (the store decides on the format; shared memory is kept shared)."""

    def json(self, name: str, value: Any) -> None:
        """Store a value made of dicts, lists, strings, numbers, booleans and None."""

    def directory(self, name: str) -> Path:
        """Return an empty folder inside the uncommitted checkpoint, for what writes its own files.

        The one kind of name that several ranks may ask for: they get the same folder.
        """
        ...


@runtime_checkable
class StateSource(Protocol):
    """What a verified checkpoint holds."""

    def names(self) -> Iterable[str]:
        """Return every name that was stored."""
        ...

    def tensors(self, name: str) -> Mapping[str, torch.Tensor]:
        """Return tensors by name, read when they are taken out of the mapping."""
        ...

    def json(self, name: str) -> Any:
        """Return a stored value."""
        ...

    def directory(self, name: str) -> Path:
        """Return the folder that a component wrote."""
        ...


@runtime_checkable
class CheckpointIO(Protocol):
    """A store of committed checkpoints."""

    def begin(self, path: str, *, step: int | None = None) -> StateSink:
        """Open an uncommitted checkpoint; readers do not see it. Collective.

        ``step``: the number of updates so far, for those who list checkpoints.
        """
        ...

    def commit(self, sink: StateSink) -> None:
        """Make it durable and visible, all of it or nothing. Collective."""

    def abort(self, sink: StateSink, cause: BaseException | None = None) -> None:
        """Remove an uncommitted checkpoint. Collective: ranks in ``commit`` raise, naming ``cause``."""

    def open(self, path: str) -> StateSource:
        """Return the contents of a committed checkpoint; raise CheckpointError when it does not verify."""
        ...

    def latest(self, directory: str) -> str | None:
        """Return the newest checkpoint of ``directory`` that verifies."""
        ...

    def listed(self, directory: str) -> list[str]:
        """Return committed checkpoints, oldest first."""
        ...

    def remove(self, path: str) -> None:
        """Remove a committed checkpoint."""


@runtime_checkable
class UnitState(Protocol):
    """How a strategy's models and optimizers turn into state and back."""

    def full(self, unit: Unit) -> dict[str, torch.Tensor]:
        """Return the whole model by parameter name, as the unwrapped model has them. Collective.

        Every rank gets the mapping; ranks other than 0 may get it empty when the strategy shards.
        """
        ...

    def load_full(self, unit: Unit, values: Mapping[str, torch.Tensor], *, strict: bool = True) -> LoadReport:
        """Load what ``full`` returned; strict raises CheckpointError unless the report is ok. Collective."""
        ...

    def save(self, unit: Unit, sink: StateSink) -> None:
        """Write this rank's part of model and optimizers, readable by any world size. Collective."""

    def load(self, unit: Unit, source: StateSource, *, strict: bool = True) -> LoadReport:
        """Read back what ``save`` wrote. Collective."""
        ...
