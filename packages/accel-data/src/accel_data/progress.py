"""How far an iteration is, and where the next one goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from accel_core.cursor import LoaderCursor

from .apart import Apart, HostStates
from .tail import Tail

if TYPE_CHECKING:
    from .streamstate import Snapshots


def _settled() -> Apart:
    apart = Apart()
    apart.settle()
    return apart


@dataclass(slots=True)
class Pending:
    """A saved position that the next iteration of its epoch goes on from."""

    saved: Mapping[str, Any]
    """The position itself."""
    epoch: int
    ended: bool = False
    """Its last batch was handed out: nothing is left of the epoch but its end."""
    samples: int = 0
    """Samples of the whole order, over all ranks, that were handed out."""
    batches: int = 0
    """Steps since ``origin``."""
    own: int = 0
    """Those of them that this rank had a batch of its own for."""
    origin: int = 0
    """Samples of the order before the first round of the iteration that was saved."""
    drop: int = 0
    """Batches of a stream that are read and dropped."""
    skip: int = 0
    """Samples of a stream that are read and dropped before rounds are cut."""
    same: bool = True
    """Batches are cut as they were: as many ranks, of the same size, by as many workers."""
    mark: int | None = None
    """A checksum of how the order begins."""
    start: HostStates | None = None
    """The global generators where the epoch began."""
    generator: torch.Tensor | None = None
    """The user's generator where the epoch began."""
    state: Mapping[str, Any] | None = None
    """What the dataset said of its own place."""
    loader: Mapping[str, Any] | None = None
    """Torchdata's state."""

    def from_start(self) -> Pending:
        """Return the start of the same epoch, whose first batches somebody leaves out himself."""
        return replace(
            self, ended=False, samples=0, batches=0, own=0, origin=0, drop=0, skip=0, loader=None, mark=None,
            state=None if self.state is None else {**self.state, "latest": self.state["start"], "batches": 0},
        )  # fmt: skip


@dataclass(slots=True)
class Run:
    """One iteration, as far as its position needs it."""

    epoch: int
    resumed: Pending | None = None
    first: int = 0
    """Steps of the epoch, from ``origin`` on, that are not handed out again."""
    origin: int = 0
    walked: int = 0
    """Steps of this iteration's own walk that are not handed out again."""
    apart: Apart = field(default_factory=_settled)
    quiet: bool = False
    """In the run that was saved worker processes were there already: starting them draws nothing."""
    reused: bool = False
    """They were there when this iteration began, here or in that run."""
    active: bool = False
    """The loop is running; False before its first batch and after its end, or a ``break``."""
    cursor: LoaderCursor | None = None
    """While it is active only: cursors hold their loader, and a loader must go when its last user does."""
    tail: Tail = field(default_factory=Tail)
    known: Mapping[int, int] = field(default_factory=dict)
    """Ranks that have ended before the others, and before which step."""
    start: HostStates | None = None
    generator: torch.Tensor | None = None
    snapshots: Snapshots | None = None
    latest: Any = None
    """Torchdata's state after the batch in hand."""
    policy: str | None = None
    """What happens where ranks end at different steps, if they could."""
    repeats: bool = False
    """This rank's last batch is read again first: if there are no others, it is repeated."""
    after: Callable[[], object] | None = None
    """Called when the first batch was read."""

    number: int = 0
    samples: int | None = 0
    """Samples that all ranks were handed out, where the batches themselves tell."""
    ended: bool = False
    """The batch in hand is the last one."""

    @property
    def steps(self) -> int:
        """Steps from ``origin`` up to the batch in hand, this one included."""
        return self.first + self.number

    def look(self) -> None:
        """Take over what the cursor knows."""
        if self.cursor is not None:
            self.number, self.samples, self.ended = self.cursor.number, self.cursor.samples, self.cursor.end

    def begin(self, cursor: LoaderCursor) -> None:
        """Note that the loop has begun."""
        self.cursor, self.active = cursor, True

    def close(self) -> None:
        """Note that the loop is over, or was left."""
        self.look()
        self.cursor, self.active = None, False

    def settle(self) -> None:
        """Note that the first batch was read: from here on the global generators are the run's own."""
        self.apart.settle()
        act, self.after = self.after, None
        if act is not None:
            act()


__all__ = ["Pending", "Run"]
