"""Loaders on torchdata's ``StatefulDataLoader`` whose state counts the batches that were handed out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from accel_core.errors import DataError, NotInstalledError, PrepareError

from .ending import policy
from .plan import LoaderPlan
from .samplers import SeedableRandomSampler
from .shard import DataLoaderShard
from .tail import Tail


def stateful_base(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return ``loader`` as a torchdata ``StatefulDataLoader``, with every attribute kept.

    Raises:
        NotInstalledError: torchdata is missing.
    """
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise NotInstalledError("data loader", "StatefulDataLoader", "torchdata") from error
    own: Any = type(loader)
    if issubclass(own, StatefulDataLoader):
        return loader
    target: type[DataLoader[Any]] = StatefulDataLoader
    if own is not DataLoader:
        target = type(f"Stateful{own.__name__}", (own, StatefulDataLoader), {"__module__": own.__module__})
    new: DataLoader[Any] = object.__new__(target)
    new.__dict__.update(loader.__dict__)
    new.__dict__.update(
        _iterator=None, snapshot_every_n_steps=1, next_iter_state=None, _initial_iter_for_state_dict=False
    )
    return new


class StatefulDataLoaderShard(DataLoaderShard):
    """A :class:`DataLoaderShard` over torchdata: ``state_dict`` speaks of the batch in the loop body's hand.

    Batches that were read ahead are not counted. The state holds the epoch, the seed of the shuffle, the
    state of the user's generator at the start of the epoch, and torchdata's own.
    """

    _states: deque[Any]
    _latest: Any = None
    """Torchdata's state after the batch that was handed out last; None between iterations."""
    _handed = 0
    _ended = False
    """The batch that was handed out last ends its iteration."""
    _done = 0
    """Batches of the coming iteration that were handed out before the state was saved."""
    _generator_state: torch.Tensor | None = None

    def _adopt(self, plan: LoaderPlan) -> None:
        super()._adopt(plan)
        if policy(self) == "cycle":
            raise PrepareError(
                "the position of a rank that has begun its data again cannot be saved",
                where="prepare_data_loader(use_stateful_dataloader=True, uneven='cycle')",
                fix="use uneven='pad_masked' or 'stop_all', or a loader that keeps no state",
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the position: epoch, batches handed out in it, and what it takes to go on from there."""
        sampler = self.get_sampler()
        seeding = self._plan.seeding
        seed = sampler.seed if isinstance(sampler, SeedableRandomSampler) else seeding and seeding.seed
        running = self._latest is not None
        generator = self._plan.generator
        if generator is None:
            drawn = None
        else:
            # In the middle of an epoch: where its order is drawn again. After it: where the next is drawn.
            drawn = self._generator_state if running and not self._ended else generator.get_state()
        return {
            "epoch": self.iteration,
            "batches": self._handed if running else 0,
            "ended": running and self._ended,
            "seed": seed,
            "generator": drawn,
            "num_processes": self._plan.collectives.world_size,
            "loader": self._latest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position of ``state``: the next iteration gives the batches that come after it.

        Raises:
            DataError: the state is incomplete, or was saved on another number of processes.
        """
        wanted = {"epoch", "batches", "ended", "seed", "generator", "num_processes", "loader"}
        if missing := sorted(wanted - state.keys()):
            raise DataError(
                f"the state of the loader lacks {', '.join(missing)}",
                where=type(self).__name__,
                fix="load what state_dict() of a prepared loader returned",
            )
        world = self._plan.collectives.world_size
        if state["num_processes"] != world:
            raise DataError(
                f"the state of the loader was saved on {state['num_processes']} processes, this is {world}",
                where=type(self).__name__,
                fix="resume on the same number of processes, or with skip_first_batches",
            )
        sampler = self.get_sampler()
        if isinstance(sampler, SeedableRandomSampler):
            sampler.seed = state["seed"]
        elif self._plan.seeding is not None:
            self._plan.seeding.seed = state["seed"]
        if self._plan.generator is not None and state["generator"] is not None:
            self._plan.generator.set_state(state["generator"])
        self.set_epoch(state["epoch"])
        self._latest = state["loader"]
        self._handed = self._done = state["batches"]
        self._ended = state["ended"]
        loader: Any = super()
        loader.load_state_dict({} if state["ended"] else state["loader"] or {})

    def _begin(self) -> int:
        epoch = super()._begin()
        if self._plan.generator is not None:
            self._generator_state = self._plan.generator.get_state()
        return epoch

    def _open(self) -> tuple[Iterator[Any], Tail, int]:
        self._states = deque()
        if self._ended:
            # Nothing is left of this epoch; torchdata would read some datasets once more to find out.
            return iter(()), Tail(), 0
        iterator, tail, drop = super()._open()
        return self._remember(iterator, drop), tail, drop

    def _remember(self, iterator: Iterator[Any], drop: int) -> Iterator[Any]:
        """Note torchdata's state after each batch, for when that batch is handed out."""
        loader: Any = super()
        for number, batch in enumerate(iterator):
            if number >= drop:
                self._states.append(loader.state_dict())
            yield batch

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._hand_out(super().__iter__())

    def _hand_out(self, batches: Iterator[Any]) -> Iterator[Any]:
        handed = self._done
        for batch in batches:
            handed += 1
            self._done = 0
            self._handed = handed
            # A batch that is repeated for want of data moves nothing on.
            self._latest = self._states.popleft() if self._states else self._latest
            self._ended = not self._states
            yield batch
        self._done = 0
        self._latest = None
        self._ended = False

    def _known_length(self) -> int | None:
        length = super()._known_length()
        return None if length is None else length - self._done


__all__ = ["StatefulDataLoaderShard", "stateful_base"]
