"""What sharded and dispatched loaders share: they are torch loaders, rebuilt with nothing lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, IterableDataset

from accel_core.errors import DataError
from accel_core.window import LoaderCursor

from .apart import Apart, host_states
from .batches import BatchSamplerShard
from .opening import Opening
from .plan import LoaderPlan
from .position import describe, resume
from .progress import Pending, Run
from .samplers import SeedableRandomSampler, samplers_of
from .stream import IterableDatasetShard, count_rows


class PreparedLoader(Opening):
    """A torch loader that follows a :class:`~accel_data.plan.LoaderPlan`."""

    _started: bool

    @classmethod
    def rebuild(cls, loader: DataLoader[Any], plan: LoaderPlan, **replaced: Any) -> Self:
        """Return ``loader`` as a prepared one: every attribute kept but the ``replaced``.

        A user's subclass stays one: the class of the result inherits from both, so its own ``__iter__``
        is what the result reads from.
        """
        base: Any = type(loader)
        if base is DataLoader or issubclass(cls, base):
            target: Any = cls
        else:
            target = type(f"{cls.__name__}Of{base.__name__}", (cls, base), {"__module__": base.__module__})
        # Not through __init__: a subclass may take other arguments, and torch may have new settings.
        new: Self = object.__new__(target)
        new.__dict__.update(loader.__dict__)
        new.__dict__.update(replaced, _iterator=None)
        new._adopt(plan)
        return new

    def _adopt(self, plan: LoaderPlan) -> None:
        self.__dict__["_plan"] = plan
        self.__dict__["_started"] = False
        if plan.epoch.value:
            self.set_epoch(plan.epoch.value)

    # -- documented attributes -------------------------------------------------------------------

    @property
    def device(self) -> torch.device | None:
        """Where batches are put; None leaves them where they are."""
        return self._plan.device

    @device.setter
    def device(self, device: torch.device | str | None) -> None:
        self._plan.device = None if device is None else torch.device(device)

    @property
    def iteration(self) -> int:
        """The epoch; it moves on by itself from one iteration to the next."""
        return self._plan.epoch.value

    @iteration.setter
    def iteration(self, value: int) -> None:
        self._plan.epoch.go(value)

    @property
    def valid_mask(self) -> torch.Tensor:
        """Which samples of the batch in hand are real: booleans, one for each, on the loader's device.

        False for padding that makes the ranks' batches equal (``even_batches``) or stands for data that have
        ended (``uneven="pad_masked"``). Raises DataError outside of this loader's loop.
        """
        cursor = next((each for each in reversed(self._plan.window.cursors) if each.owner is self), None)
        if cursor is None or not cursor.number:
            raise DataError(
                "this loader has no batch in hand, so no sample of it is real or padding",
                where=f"{type(self).__name__}.valid_mask",
                fix="ask in the body of a loop over this prepared loader",
            )
        rows = count_rows(cursor.batch) if cursor.rows is None else cursor.rows
        real = rows if cursor.own is None or cursor.again else cursor.own
        return torch.arange(rows, device=self.device) < real

    @property
    def skip_batches(self) -> int:
        """Batches that the coming iteration leaves out."""
        return self._plan.skip

    @property
    def rng_types(self) -> list[str]:
        """Random generators that ranks synchronise at each iteration."""
        return list(self._plan.rng_types)

    @property
    def synchronized_generator(self) -> torch.Generator | None:
        """The user's own generator, whose state follows rank 0's."""
        return self._plan.generator

    def set_epoch(self, epoch: int) -> None:
        """Go to ``epoch``: samplers and datasets with a ``set_epoch`` of their own are told."""
        plan = self._plan
        if self._started and epoch != plan.epoch.value:
            plan.skip, plan.anew = 0, False
        plan.epoch.go(epoch)
        self._tell_all(epoch)

    def get_sampler(self) -> Any:
        """Return the sampler that decides the order of the samples."""
        owner = self._sampler_owner()
        return self.sampler if owner is None else owner.sampler

    def set_sampler(self, sampler: Any) -> None:
        """Replace the sampler that decides the order of the samples."""
        owner = self._sampler_owner()
        if owner is not None:
            owner.sampler = sampler
        self.__dict__["sampler"] = sampler

    def position(self, *, resume_left: bool = False) -> dict[str, Any]:
        """Return where the loop is, to go on from there with `resume_at`, on another number of ranks too.

        In the loop body the batch in hand counts as used, those read ahead do not. After a loop that was
        left by ``break`` it is the start of the next epoch, as for the next loop; ``resume_left``: the
        place where the loop was left, for a run that is about to end. Plain values and tensors in dicts,
        and what a dataset with ``state_dict`` says of itself; alike on all ranks, but for data that
        ranks hold themselves and for what rank 0 alone dispatches.

        Raises DataError where nobody could go on: ``in_order=False``, or ``uneven="cycle"`` once a rank has
        begun again.
        """
        return describe(self, resume_left=resume_left)

    def resume_at(self, position: Mapping[str, Any]) -> None:
        """Let the next iteration go on after the batch that was in hand when ``position`` was saved.

        The samples follow in the order in which they would have, whatever the number of ranks and the
        size of batches are now; ``len`` stays that of a whole epoch. After the last batch of an epoch
        the next iteration gives nothing, so that what follows it is run. ``set_epoch`` to another epoch
        and ``skip_first_batches`` come before it. On another number of ranks, pass each rank rank 0's.

        Raises DataError with the reason where that is not possible: other data or another sampler, data
        that ranks hold themselves on another number of ranks, or something that is no position.
        """
        resume(self, position)

    def adjust_state_dict_for_prefetch(self) -> None:
        """Do nothing: a saved state counts the batches that were handed out, never those read ahead."""

    @property
    def total_batch_size(self) -> int | None:
        """Samples of a full batch over all ranks; None when batches have no fixed size."""
        batches = self._batches
        if isinstance(batches, BatchSamplerShard):
            return batches.round_size
        if isinstance(self.dataset, IterableDatasetShard):
            return self.dataset.round_size
        size = getattr(batches, "batch_size", self.batch_size)
        return None if size is None else self._ranks_per_batch() * int(size)

    @property
    def total_dataset_length(self) -> int:
        """Samples of the whole dataset, before sharding."""
        return len(getattr(self.dataset, "unsharded", self.dataset))  # type: ignore[arg-type]

    def __len__(self) -> int:
        """Return the batches that the next iteration gives to this rank."""
        return max(0, self._full_length() - self._plan.skip)

    # -- for the two kinds -----------------------------------------------------------------------

    def _full_length(self) -> int:
        return super().__len__()

    def _sampler_owner(self) -> Any:
        owner = self._batches
        while isinstance(owner, BatchSamplerShard):
            owner = owner.batch_sampler
        return owner if hasattr(owner, "sampler") else None

    @staticmethod
    def _tell(target: Any, epoch: int) -> bool:
        tell = getattr(target, "set_epoch", None)
        if callable(tell):
            tell(epoch)
        return callable(tell)

    def _tell_all(self, epoch: int) -> None:
        """Tell the epoch to every sampler and to the dataset, each once."""
        for sampler in samplers_of(self):
            self._tell(sampler, epoch)
        if self._tell(getattr(self.dataset, "unsharded", self.dataset), epoch):
            # Living workers hold an older copy of the dataset; new ones get the present one.
            self._iterator = None

    def _finish(self, run: Run) -> None:
        """Note that an iteration is over: the next one is the next epoch, in full."""
        counter, audit = self._plan.epoch, self._plan.audit
        partial = self._plan.skip > 0 or run.resumed is not None
        # Another iteration may have begun beside this one and moved on already, or a position was resumed.
        if counter.value == run.epoch and counter.pending is None:
            self._plan.skip, self._plan.anew = 0, False
            counter.go(run.epoch + 1)
            self._tell_all(counter.value)
        if audit is not None:
            audit.finish(partial=partial)

    def _begin(self) -> Run:
        """Bring the ranks to the start of the epoch, or to where it was resumed, and return the iteration.

        After an iteration that was left early it is the next epoch, as in torch: a loop that always takes
        the first hundred batches must not always see the same ones.
        """
        plan, counter = self._plan, self._plan.epoch
        plan.window.start_loop()
        if counter.running:
            plan.skip, plan.anew = 0, False
            counter.go(counter.value + 1)
            self._tell_all(counter.value)
        self._compare_epochs()
        run = self._make_run()
        counter.pending, counter.run = None, run
        resumed = run.resumed
        if resumed is None or not resumed.ended:
            with run.apart:
                if resumed is not None and plan.generator is not None and resumed.generator is not None:
                    plan.generator.set_state(resumed.generator.cpu())
                plan.begin(resumed=resumed is not None)
        run.generator = None if plan.generator is None else plan.generator.get_state()
        if self.__dict__.pop("_one_time", False):
            self._iterator = None
        counter.running = True
        self.__dict__["_started"] = True
        return run

    def _past(self, resumed: Pending) -> Pending:
        """Return where to begin when somebody leaves out batches himself after an epoch that had ended.

        All batches: nothing is left of it. Fewer: he counts from the start of the next epoch.
        """
        plan, counter = self._plan, self._plan.epoch
        left = self._known_length()
        if plan.skip and (plan.skip >= resumed.batches if left is None else left == 0):
            plan.skip = 0
            return resumed
        counter.go(resumed.epoch + 1)
        self._tell_all(counter.value)
        return replace(resumed.from_start(), epoch=counter.value)

    def _make_run(self) -> Run:
        plan, counter = self._plan, self._plan.epoch
        resumed = counter.pending
        if resumed is not None and (plan.anew or plan.skip):
            resumed = self._past(resumed) if resumed.ended else resumed.from_start()
        run = Run(counter.value, resumed, plan.skip)
        if resumed is not None:
            run.first += resumed.batches if resumed.same else 0
            run.origin = resumed.origin if resumed.same else resumed.samples
        if resumed is None or not resumed.ended:
            run.quiet, counter.quiet = counter.quiet, False
            run.reused = run.quiet or (self.persistent_workers and self._iterator is not None)
            if resumed is not None or run.quiet:
                salt = run.epoch << 40 | (resumed.samples if resumed is not None else 0)
                run.apart = Apart(None if resumed is None else resumed.start, salt)
            if self._replays():
                run.start = resumed.start if resumed is not None else host_states()
        return run

    def _replays(self) -> bool:
        """Tell whether where the epoch's order begins depends on the global generators."""
        course = self._course()
        if course is None or course.reading() is None:
            return True
        sampler = self.get_sampler()
        return not isinstance(sampler, SeedableRandomSampler) and getattr(sampler, "generator", True) is None

    def _compare_epochs(self) -> None:
        """Make sure that ranks which shuffle by themselves are about to shuffle alike."""
        group = self._plan.collectives
        seeded = self._plan.seeding is not None or isinstance(self.get_sampler(), SeedableRandomSampler)
        if group.world_size == 1 or not seeded:
            return
        counter = self._plan.epoch
        steps = -1 if counter.pending is None else counter.pending.batches
        votes = group.vote(counter.value | (steps + 1) << 31)()
        epochs = [vote & 0x7FFFFFFF for vote in votes]
        if len(set(votes)) > 1 and len(set(epochs)) == 1:
            raise DataError(
                "the ranks go on at different places of an epoch, some of them at its start perhaps: some "
                "samples would be read twice and others never",
                where=f"rank {group.rank}, start of an iteration",
                fix="resume on every rank from the same checkpoint, or on none",
            )
        if len(set(epochs)) > 1:
            raise DataError(
                f"the ranks start different epochs, {', '.join(map(str, epochs))} in rank order: some samples"
                " would be read twice and others never",
                where=f"rank {group.rank}, start of an iteration",
                fix="call set_epoch with the same number on every rank, and iterate on all ranks or on none",
            )

    def _known_length(self) -> int | None:
        """Return the batches ahead where they follow from the samplers, not from a dataset's claim."""
        if isinstance(self.dataset, IterableDataset):
            return None
        try:
            return len(self)
        except (TypeError, NotImplementedError):
            return None

    def _cursor(self) -> LoaderCursor:
        cursor = LoaderCursor(self)
        if self._plan.window.tally is not None and self._plan.collectives.world_size == 1:
            cursor.measure = count_rows
        return cursor


__all__ = ["PreparedLoader"]
