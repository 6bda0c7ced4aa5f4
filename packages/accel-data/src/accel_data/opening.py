"""How a prepared loader begins to read: from the start, after some batches, or where it was resumed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

from torch.utils.data import DataLoader, IterableDataset

from . import hf
from .batches import BatchSamplerShard
from .plan import LoaderPlan
from .progress import Pending, Run
from .stream import IterableDatasetShard, SkippedStream
from .streamstate import Snapshots, keeps_place
from .tail import Tail


class Opening(DataLoader[Any]):
    """The part of a prepared loader that starts torch's own iteration."""

    _plan: LoaderPlan
    _reader_alone: ClassVar[bool] = False
    """Rank 0 reads for all."""

    @property
    def _batches(self) -> Any:
        """What decides the batches: in bulk loading (``batch_size=None``) that is the sampler."""
        return self.sampler if self.batch_sampler is None else self.batch_sampler

    def _ranks_per_batch(self) -> int:
        return 1

    @property
    def _index_sampler(self) -> Any:
        """What torch reads indices from: the course, which can start anywhere and knows how far it is."""
        course = self._course()
        return self._batches if course is None else course

    def _course(self) -> BatchSamplerShard | None:
        """Return what deals out the batches of indexed data; None for streams."""
        batches = self._batches
        if isinstance(batches, BatchSamplerShard):
            return batches
        if isinstance(self.dataset, IterableDataset):
            return None
        course: BatchSamplerShard | None = self.__dict__.get("_own_course")
        if course is None or course.batch_sampler is not batches:
            course = self.__dict__["_own_course"] = BatchSamplerShard(batches)
        return course

    def _plainly_iterated(self) -> bool:
        """Tell whether batches come as torch gives them, not through the ``__iter__`` of a user's class."""
        own = next(cls for cls in type(self).__mro__ if "__iter__" in vars(cls) and not _is_ours(cls))
        return own.__module__.startswith(("torch.", "torchdata."))

    def _open(self, run: Run | None = None) -> tuple[Iterator[Any], Tail, int]:
        """Start torch's own iteration; return it, what it knows of its end, and the batches to drop.

        ``run``: the iteration it is for; None: the data is begun again within one.
        """
        course = self._course()
        if course is None:
            return self._open_stream(run)
        self._set_out(course, run)
        iterator = iter(super().__iter__())
        drop = 0
        if run is not None:
            run.tail = course.tail
            drop = 0 if run.resumed is None or not run.resumed.drop else run.resumed.drop - run.repeats
        return iterator, course.tail, drop

    def _set_out(self, course: BatchSamplerShard, run: Run | None) -> None:
        """Tell ``course`` where its next walk starts."""
        course.start, course.origin = self._plan.skip, 0
        course.prime = course.settle = None
        if run is None:
            return
        resumed = run.resumed
        if resumed is not None and resumed.same:
            again = self._reread(run, resumed)
            course.origin = resumed.origin
            course.start += 0 if resumed.drop else resumed.own - again
        elif resumed is not None:
            course.origin = resumed.samples
        if course.reading() is not None and self._plainly_iterated():
            course.settle = run.apart.settle
        if run.quiet and self._plan.generator is not None and run.generator is not None:
            course.prime = partial(self._plan.generator.set_state, run.generator)

    def _open_stream(self, run: Run | None) -> tuple[Iterator[Any], Tail, int]:
        stream, drop = self.dataset, self._plan.skip * self._ranks_per_batch()
        resumed = None if run is None else run.resumed
        shard = stream if isinstance(stream, IterableDatasetShard) else None
        user: Any = getattr(stream, "unsharded", stream)
        jumped = 0
        if resumed is not None:
            drop += resumed.drop
            if resumed.state is not None:
                jumped = int(resumed.state["batches"])
                self._put(user, shard, resumed)
            if resumed.skip:
                self._leave_out(shard, resumed.skip)
        notes = None if run is None else self._notes(user, resumed, jumped)
        try:
            iterator: Iterator[Any] = iter(super().__iter__())
        finally:
            self.__dict__["dataset"] = stream
            if shard is not None:
                shard.skip, shard.jump = 0, None
        if run is not None and notes is not None:
            run.snapshots = notes
            iterator = notes.watch(iterator)
        if run is not None and resumed is not None and resumed.state is not None:
            run.after = partial(hf.forget_place, user)
        if run is not None and resumed is not None:
            drop -= self._reread(run, resumed)
        return iterator, Tail(), drop

    def _reread(self, run: Run, resumed: Pending) -> int:
        """Return 1 where this rank must read its last batch again, to repeat it if it has no other."""
        run.repeats = run.policy == "pad_masked" and resumed.same and resumed.own > 0
        run.walked += run.repeats
        return int(run.repeats)

    def _put(self, user: Any, shard: IterableDatasetShard | None, resumed: Pending) -> None:
        """Put the user's dataset where its own state says."""
        state = resumed.state or {}
        if shard is not None and state["batches"]:
            shard.jump = state["start"], state["latest"]
        else:
            user.load_state_dict(state["latest"])

    def _leave_out(self, shard: IterableDatasetShard | None, samples: int) -> None:
        """Let the coming iteration of a stream start after ``samples``."""
        # Living workers hold an older copy, and those that start now hold one that nobody else needs.
        self._iterator = None
        self.__dict__["_one_time"] = True
        if shard is not None:
            shard.skip = samples
        else:
            self.__dict__["dataset"] = SkippedStream(self.dataset, samples)

    def _notes(self, user: Any, resumed: Pending | None, jumped: int) -> Snapshots | None:
        """Return what notes the places of a dataset that keeps its own."""
        if self._reader_alone or not keeps_place(self):
            return None
        start = None if resumed is None or resumed.state is None else resumed.state["start"]
        try:
            return Snapshots(user, jumped, start)
        except Exception:  # noqa: BLE001 - it cannot say where it is yet: it is read again from the start
            return None


def _is_ours(cls: type) -> bool:
    return issubclass(cls, Opening)


__all__ = ["Opening"]
