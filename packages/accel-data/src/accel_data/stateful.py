"""Loaders on torchdata's ``StatefulDataLoader`` whose state counts the batches that were handed out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from accel_core.errors import DataError, NotInstalledError, PrepareError

from .batches import BatchSamplerShard
from .ending import policy
from .plan import LoaderPlan
from .progress import Pending, Run
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
        self._plan.epoch.pending = None
        loader: Any = super()
        loader.load_state_dict({} if state["ended"] else state["loader"] or {})

    def position(self, *, resume_left: bool = False) -> dict[str, Any]:
        """Return where the loop is, with torchdata's own state; see `PreparedLoader.position`."""
        counter = self._plan.epoch
        waits = (self._done or self._ended) and not (counter.run is not None and counter.run.active)
        if waits and counter.pending is None:
            raise DataError(
                "what load_state_dict() loaded has not been gone on with yet",
                where=f"position() of {type(self).__name__}",
                fix="ask in the body of the loop, or use resume_at in place of load_state_dict",
            )
        return super().position(resume_left=resume_left)

    def resume_at(self, position: Mapping[str, Any]) -> None:
        """Let the next iteration go on from ``position``; see `PreparedLoader.resume_at`.

        With as many ranks, workers and samples in a batch through torchdata's state, otherwise by the
        samples of the whole order.
        """
        super().resume_at(position)
        self._latest, self._handed, self._done, self._ended = None, 0, 0, False
        loader: Any = super()
        loader.load_state_dict({})

    def _make_run(self) -> Run:
        run = super()._make_run()
        if run.resumed is None:
            run.first += self._done
        return run

    def _course(self) -> BatchSamplerShard | None:
        # Torchdata saves what samplers say of themselves, so they are hidden only where they must be.
        batches = self._batches
        hidden = isinstance(batches, BatchSamplerShard) or self.__dict__.get("_hidden", False)
        return super()._course() if hidden else None

    def _open(self, run: Run | None = None) -> tuple[Iterator[Any], Tail, int]:
        self._states = deque()
        if self._ended:
            # Nothing is left of this epoch; torchdata would read some datasets once more to find out.
            return iter(()), Tail(), 0
        origin = 0 if run is None else run.origin
        self.__dict__["_hidden"] = origin > 0 and not isinstance(self.dataset, IterableDataset)
        if run is not None and run.resumed is not None and run.resumed.loader is not None:
            loader: Any = super()
            loader.load_state_dict(run.resumed.loader)
            self._done = run.resumed.batches
            # Torchdata leaves them out itself.
            run.resumed = replace(run.resumed, batches=0, own=0, drop=0)
        if run is not None:
            run.walked = self._done
        if run is not None and run.generator is not None:
            self._generator_state = run.generator
        iterator, tail, drop = super()._open(run)
        return self._remember(iterator, drop), tail, drop

    def _remember(self, iterator: Iterator[Any], drop: int) -> Iterator[Any]:
        """Note torchdata's state after each batch, for when that batch is handed out."""
        loader: Any = super()
        for number, batch in enumerate(iterator):
            if number >= drop:
                self._states.append(loader.state_dict())
            yield batch

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        return self._hand_out(batches, self._plan.epoch.run)

    def _hand_out(self, batches: Iterator[Any], run: Run | None) -> Iterator[Any]:
        handed = self._done
        for batch in batches:
            handed += 1
            self._done = 0
            self._handed = handed
            # A batch that is repeated for want of data moves nothing on.
            self._latest = self._states.popleft() if self._states else self._latest
            if run is not None:
                run.look()
                self._ended, run.latest = run.ended, self._latest
            yield batch
        self._done = 0
        self._latest = None
        self._ended = False

    def _notes(self, user: Any, resumed: Pending | None, jumped: int) -> None:
        # Torchdata notes it itself.
        return None


__all__ = ["StatefulDataLoaderShard", "stateful_base"]
