"""What a prepared loader was told at ``prepare``: decided once, read at the start of each iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from accel_core.enums import RNGType
from accel_core.errors import PrepareError, UnknownNameError
from accel_core.protocols.collectives import Collectives, LonelyCollectives
from accel_core.window import GradientWindow

from .order import epoch_seed

if TYPE_CHECKING:
    from .audit import Audit
    from .progress import Pending, Run

Synchronize = Callable[[Sequence[str], "torch.Generator | None"], None]


@dataclass(slots=True)
class EpochCounter:
    """The epoch of a loader; a loader and those that skip its first batches share one."""

    value: int = 0
    running: bool = False
    """An iteration of this epoch has begun and has not ended: it goes on, or was left early."""
    pending: Pending | None = None
    """Where the next iteration goes on, if that is not the start of the epoch."""
    run: Run | None = None
    """The latest iteration that has begun."""
    quiet: bool = False
    """The next iteration finds its worker processes running, as far as random numbers can tell."""

    def go(self, epoch: int) -> None:
        """Go to ``epoch``: to its start, or where a position in it was resumed."""
        if self.pending is not None and self.pending.epoch != epoch:
            self.pending = None
        self.value = epoch
        self.running = False


@dataclass(slots=True)
class Seeding:
    """The generator that was given to a sampler which had none, and the seed of its epochs."""

    generator: torch.Generator
    seed: int

    def begin(self, epoch: int) -> None:
        """Put the generator where ``epoch`` starts."""
        self.generator.manual_seed(epoch_seed(self.seed, epoch))


@dataclass(slots=True)
class LoaderPlan:
    """Settings of a prepared loader."""

    device: torch.device | None = None
    non_blocking: bool = False
    rng_types: tuple[str, ...] = ()
    generator: torch.Generator | None = None
    """The user's own generator, whose state rank 0 sends out at each iteration."""
    skip: int = 0
    """Local batches left out of the first iteration."""
    anew: bool = False
    """``skip`` counts from the start of the epoch, also where a position in it was resumed."""
    epoch: EpochCounter = field(default_factory=EpochCounter)
    collectives: Collectives = field(default_factory=LonelyCollectives)
    world: int | None = None
    """The ranks that the data is divided among; None: those of ``collectives``."""
    rank: int | None = None
    window: GradientWindow = field(default_factory=GradientWindow)
    synchronize: Synchronize | None = None
    seeding: Seeding | None = None
    watch_ends: bool = False
    """Ranks read a stream each: they tell each other about its end, so that none waits for ever."""
    kept: bool = False
    """Each rank's loader reads its own part already, and is not divided again."""
    audit: Audit | None = None
    """What compares the data that ranks read; None when nobody does."""
    uneven: str | None = None
    """What happens where ranks run out of data at different steps, as asked for; see `ending.policy`."""
    even_batches: bool = True

    @property
    def place(self) -> tuple[int, int]:
        """How many ranks the data is divided among, and which of them this is."""
        group = self.collectives
        world = group.world_size if self.world is None else self.world
        return world, group.rank if self.rank is None else self.rank

    def begin(self, *, resumed: bool = False) -> None:
        """Bring the generators of all ranks to the start of the epoch.

        ``resumed``: only those that an order comes from, because the others are the run's again already.
        """
        if self.seeding is not None:
            self.seeding.begin(self.epoch.value)
        types = self.rng_types
        if resumed:
            types = tuple(kind for kind in types if kind in ("generator", "torch"))
        if self.collectives.world_size == 1 or not types:
            return
        if self.generator is None:
            types = tuple(kind for kind in types if kind != "generator")
        if types:
            (self.synchronize or self._send_states)(types, self.generator)

    def _send_states(self, types: Sequence[str], generator: torch.Generator | None) -> None:
        """Synchronise what plain torch can; used when no ``synchronize`` was given."""
        for kind in types:
            if kind == "generator" and generator is not None:
                state = self.collectives.broadcast_object(generator.get_state())
                generator.set_state(state)
            elif kind == "torch":
                torch.set_rng_state(self.collectives.broadcast_object(torch.get_rng_state()))
            else:
                raise PrepareError(
                    f"accel-data alone cannot synchronise random generators of type {kind!r}",
                    where=f"rng_types={list(types)}",
                    fix="pass synchronize=, for example accel_state.synchronize_rng_states",
                )


def check_rng_types(types: Sequence[Any] | None) -> tuple[str, ...]:
    """Return the names of the generators to synchronise; unknown ones are an error."""
    if types is None:
        return ()
    if isinstance(types, str):
        types = [types]
    known = RNGType.list()
    for kind in types:
        if str(kind) not in known:
            raise UnknownNameError("rng_types entry", str(kind), known)
    return tuple(str(kind) for kind in types)


__all__ = ["EpochCounter", "LoaderPlan", "Seeding", "Synchronize", "check_rng_types"]
