"""What happens where ranks run out of data at different steps: they agree, batch by batch, to go on."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset

from accel_core.config.run import UNEVEN
from accel_core.errors import DataError, UnevenDataError, UnknownNameError
from accel_core.logging import get_logger
from accel_core.nested import leaves, map_nested
from accel_core.protocols.collectives import Collectives, LonelyCollectives

from .stream import IterableDatasetShard, count_rows

logger = get_logger(__name__)

NOTHING: Any = object()
"""Stands for a batch that is not there."""
_ENDED, _HAS, _FAILED, _EMPTY = range(4)
_AHEAD = 16
"""Batches read ahead, which one vote covers where they are alike: a vote wakes a thread, and costs as much as
reading a small batch."""
_ROOM = 64 * 2**20
"""Bytes that batches read ahead may take. Large ones are for long steps, in which a vote is nothing."""
_POLICIES = "uneven='stop_all', 'pad_masked' or 'cycle'"


def check_policy(name: str | None) -> str | None:
    """Return ``name``; raise UnknownNameError when it is no policy."""
    if name is not None and name not in UNEVEN:
        raise UnknownNameError("policy for uneven data", str(name), UNEVEN)
    return name


def policy(loader: Any) -> str | None:
    """Return what ``loader`` does where ranks end at different steps; None where no agreement is needed.

    None too for map-style data that are divided here without ``even_batches``: unequal numbers of batches
    are what that asks for. ``error`` is for streams, where nobody has asked for anything.
    """
    plan, batches = loader._plan, loader._batches
    asked: str | None = plan.uneven
    if isinstance(loader.dataset, IterableDataset):
        if not (plan.watch_ends or plan.kept or isinstance(loader.dataset, IterableDatasetShard)):
            return None
        if asked == "independent" and not plan.watch_ends:
            return None
        return asked or ("pad_masked" if plan.kept and plan.even_batches else "error")
    if asked == "independent" or plan.collectives.world_size == 1:
        return None
    if plan.kept:
        return asked or ("pad_masked" if plan.even_batches else None)
    divided = getattr(batches, "num_processes", 1) > 1
    return asked if divided and not getattr(batches, "even_batches", True) else None


class Step(NamedTuple):
    """One rank's batch of a step, and what is known of the step."""

    batch: Any
    own: int | None
    """Real samples in the batch; None when all are."""
    rows: int
    again: bool
    valid: int | None
    """Real samples over all ranks when some are padding."""
    world_batch: int


class _Item(NamedTuple):
    """A batch as it was read."""

    status: int
    batch: Any = NOTHING
    rows: int = 0
    counts: tuple[int, int, int] | None = None
    """Real and all samples over all ranks, and real ones of this rank, as the batch itself carries them."""

    @property
    def real(self) -> int:
        if self.status != _HAS:
            return 0
        return self.rows if self.counts is None else self.counts[2]

    def alike(self, other: _Item) -> bool:
        """Tell whether a ballot for ``self`` speaks of ``other`` too."""
        return other.status == _HAS and (other.rows, other.real) == (self.rows, self.real)

    def ballot(self, run: int = 1) -> int:
        """Return what this rank says of the item and of those after it that are alike, ``run`` in all."""
        return self.status | run - 1 << 2 | self.real << 6 | self.rows << 34


def _status(vote: int) -> int:
    return vote & 3


def _run(vote: int) -> int:
    return (vote >> 2 & 15) + 1


def _real(vote: int) -> int:
    return vote >> 6 & 0xFFFFFFF


def _rows(vote: int) -> int:
    return vote >> 34


class Ends:
    """The ranks' agreement in one iteration: who has another batch, asked while the batch before is computed.

    A vote is cast with the last batch that the vote before was about, and is for as many of the batches read
    since as all ranks have alike.

    ``again(n)`` starts the data of this rank anew, for the n-th time. ``left()`` returns how many batches
    this rank has in all from ``first`` on, or None when it cannot know.
    """

    def __init__(
        self,
        iterator: Iterator[Any],
        chosen: str,
        group: Collectives,
        *,
        first: int,
        carried: bool,
        sizes: tuple[int, int] | None,
        again: Callable[[int], Iterator[Any]],
        left: Callable[[], int | None],
        last: Any = NOTHING,
    ) -> None:
        self._iterator = iterator
        self._policy = chosen
        self._group = LonelyCollectives() if chosen == "independent" else group
        self._first = self._number = first
        self._carried = carried
        """Batches come as ``(batch, counts)``."""
        self._sizes = sizes
        """Samples of a batch of one rank, and of all, where batches are full; None: they are counted."""
        self._again = again
        self._left = left
        self._rounds = 0
        self._last: Any = last
        """This rank's latest batch, which it repeats when it has ended; from before, if it had ended then."""
        self._known: dict[int, int] = {}
        """Ranks that have ended, and before which batch."""
        self._own_end = False
        self.over = False
        """There is no further step."""
        self.trouble: Exception | None = None
        """Why there is none, if that is not the end of the data."""
        self._items: deque[_Item] = deque()
        """What was read and not handed out; the end, or a failure, comes last."""
        self._enough = 1
        """How many of them are read ahead."""
        self._facts: Step
        """What is known of the steps that the latest answer is about."""
        self._agreed = 0
        """How many of the items the latest answer is about."""
        self._read_ahead(1)
        if self._group.world_size > 1 and self._items[0].status == _HAS:
            self._enough = max(1, min(_AHEAD, _ROOM // max(1, _size(self._items[0].batch))))
        self._read_ahead(1)
        self._cast()

    @property
    def ended(self) -> dict[int, int]:
        """The ranks that have ended, and before which batch."""
        return self._known

    # -- one step ----------------------------------------------------------------------------

    def take(self) -> Step | None:
        """Return this rank's batch of the next step, and start on those after it; None at the end."""
        if not self._agreed and not self._agree():
            return None
        item = self._items.popleft()
        # Steps that one vote is for are alike but for the batch.
        step = self._facts._replace(batch=item.batch)
        self._number += 1
        self._agreed -= 1
        if item.status == _HAS:
            self._last = item.batch
        # Two at a time until there are enough, so that no step has to wait for many.
        self._read_ahead(2)
        if not self._agreed:
            self._cast()
        return step

    def _agree(self) -> bool:
        """Wait for the answer; return whether there is a further step."""
        if self.over:
            return False
        votes = self._answers()
        statuses = [_status(vote) for vote in votes]
        if not self._goes_on(statuses):
            self.over = True
            return False
        ended = [rank for rank, status in enumerate(statuses) if status == _ENDED]
        if len(ended) > len(self._known):
            replaced = self._replace([rank for rank in ended if rank not in self._known], self._items[0])
            if replaced is None:
                return False
            self._items[0], votes = replaced
        self._facts = self._step(self._items[0], votes)
        self._agreed = min(map(_run, votes))
        return True

    def _step(self, item: _Item, votes: list[int]) -> Step:
        again = item.status == _ENDED and self._policy == "cycle"
        own = None if item.real == item.rows else item.real
        if item.counts is not None and not self._known:
            return Step(item.batch, own, item.rows, again, item.counts[0], item.counts[1])
        real, rows = sum(map(_real, votes)), sum(map(_rows, votes))
        padded = bool(self._known) or real < rows
        if self._sizes is not None and not padded:
            rows = self._sizes[1]
        return Step(item.batch, own, item.rows, again, real if padded else None, rows)

    def _cast(self) -> None:
        """Start the vote on what was read."""
        first = self._items[0]
        # A rank that has ended makes up its batches one by one.
        run = 1 if first.status != _HAS else sum(1 for _ in takewhile(first.alike, self._items))
        self._answers = self._group.vote(first.ballot(run))

    def _read_ahead(self, most: int) -> None:
        """Read up to ``most`` batches, as long as there are any and fewer than enough."""
        items = self._items
        enough = 1 if self._known else self._enough
        for _ in range(most):
            if len(items) >= enough or (items and items[-1].status != _HAS):
                return
            try:
                items.append(self._read())
            except Exception as error:  # noqa: BLE001 - raised again by the loop, after the other ranks know
                items.append(_Item(_FAILED, error))

    def _read(self) -> _Item:
        if not self._own_end:
            return self._wrap(next(self._iterator, NOTHING), _HAS)
        if self._policy == "pad_masked":
            return self._wrap(copied(self._last), _ENDED, unpack=False)
        batch = next(self._iterator, NOTHING)
        return self._wrap(self._begin_again() if batch is NOTHING else batch, _ENDED)

    def _wrap(self, batch: Any, status: int, *, unpack: bool = True) -> _Item:
        if batch is NOTHING:
            return _Item(_ENDED)
        counts = None
        if unpack and self._carried:
            batch, counts = batch
        return _Item(status, batch, count_rows(batch) if self._sizes is None else self._sizes[0], counts)

    def _begin_again(self) -> Any:
        self._rounds += 1
        self._iterator = self._again(self._rounds)
        return next(self._iterator)

    # -- where some ranks have ended -----------------------------------------------------------

    def _goes_on(self, statuses: list[int]) -> bool:
        failed = [rank for rank, status in enumerate(statuses) if status == _FAILED]
        ended = [rank for rank, status in enumerate(statuses) if status == _ENDED]
        if failed:
            self.trouble = self._failure(failed, self._items[0])
        elif ended and len(ended) < len(statuses):
            if self._policy == "error":
                self.trouble = self._uneven(ended)
            elif self._policy == "stop_all":
                self._known = dict.fromkeys(ended, self._number)
            else:
                return True
        return not failed and not ended

    def _replace(self, ranks: list[int], item: _Item) -> tuple[_Item, list[int]] | None:
        """Give the ranks that have just ended what they hand out from now on, and vote anew. Collective.

        None when a rank has nothing to hand out.
        """
        group = self._group
        mine = group.rank in ranks
        self._own_end = self._own_end or mine
        self._known.update(dict.fromkeys(ranks, self._number))
        if self._policy == "pad_masked" and self._number == self._first:
            # No batch to repeat: they get the form of another rank's.
            source = next(rank for rank in range(group.world_size) if rank not in ranks)
            blank = self._blank(source, item)
            self._last = blank if mine and self._last is NOTHING else self._last
        if mine:
            # The loop body may change the batch that it is given.
            self._last = copied(self._last)
            item = self._started()
        votes = group.vote(item.ballot())()
        failed = [rank for rank, vote in enumerate(votes) if _status(vote) == _FAILED]
        empty = [rank for rank, vote in enumerate(votes) if _status(vote) == _EMPTY]
        if failed:
            self.trouble = self._failure(failed, item)
        elif empty:
            self.trouble = UnevenDataError(
                f"rank {_listed(empty)} has no data at all, so there is nothing to begin again with",
                ended=empty,
                where=self._where(),
                fix="use uneven='pad_masked', or give every rank some data",
            )
        self.over = self.trouble is not None
        return None if self.over else (item, votes)

    def _started(self) -> _Item:
        """Return the first batch of a rank that has ended: repeated, or the first of its next epoch."""
        try:
            return self._read()
        except StopIteration:
            return _Item(_EMPTY)
        except Exception as error:  # noqa: BLE001 - raised by the loop, after the other ranks know
            return _Item(_FAILED, error)

    def _blank(self, source: int, item: _Item) -> Any:
        """Return a batch of the form of rank ``source``'s, all zeros, on every rank."""
        message: tuple[Any, str] = (None, "")
        if self._group.rank == source:
            try:
                message = (pickle.dumps(map_nested(_zeros, item.batch)), "")
            except Exception as error:  # noqa: BLE001 - raised on every rank
                message = (None, f"{type(error).__name__}: {error}")
        outline, failure = self._group.broadcast_object(message, source)
        if failure:
            raise DataError(
                f"a rank without data cannot be given a batch like that of rank {source}: {failure}",
                where=self._where(),
                fix="return tensors and plain values from collate_fn, or give every rank some data",
            )
        return pickle.loads(outline)  # noqa: S301 - from a rank of our own group

    # -- words -----------------------------------------------------------------------------------

    def _where(self) -> str:
        return f"rank {self._group.rank}, batch {self._number}"

    def _failure(self, failed: list[int], item: _Item) -> Exception:
        if isinstance(item.batch, Exception):
            return item.batch
        return DataError(
            f"reading the data failed on rank {_listed(failed)}",
            where=self._where(),
            fix="see the error of that rank",
        )

    def _uneven(self, ended: list[int]) -> UnevenDataError:
        return UnevenDataError(
            f"the data of rank {_listed(ended)} ended before batch {self._number}, "
            "that of the other ranks goes on",
            ended=ended,
            where=self._where(),
            fix="let every rank read the same stream in the same order (seed it alike); if each rank has its "
            f"own data, say so with sharding='sharded'; or choose what happens with {_POLICIES}",
        )

    def report(self) -> None:
        """Say once an epoch which ranks had ended before the others. Collective if any had."""
        if not self._known:
            return
        if self._policy == "stop_all":
            mine = None if self._items[0].status == _ENDED else self._left() or -1
            left = self._group.all_gather_object(mine)
            more = [
                f"rank {rank}: {'at least 1' if number < 0 else max(1, number - self._number + self._first)}"
                for rank, number in enumerate(left)
                if number is not None
            ]
            logger.warning(
                "The data of rank %s ended before batch %s, and all ranks stopped (uneven='stop_all')."
                " Batches not read: %s.",
                _listed(list(self._known)),
                self._number,
                ", ".join(more),
            )
            return
        self._say_extra(
            ", ".join(f"rank {rank}: {self._number - at}" for rank, at in sorted(self._known.items()))
        )

    def _say_extra(self, extra: str) -> None:
        steps = self._number - self._first
        if self._policy == "cycle":
            logger.warning(
                "Ranks had unequal numbers of batches, %s steps in all. Batches read again (uneven='cycle'):"
                " %s. gather_for_metrics leaves them out.",
                steps,
                extra,
            )
            return
        logger.warning(
            "Ranks had unequal numbers of batches, %s steps in all. Batches that are padding"
            " (uneven='pad_masked'): %s. gather_for_metrics leaves them out; in training, weight the loss"
            " with loader.valid_mask.",
            steps,
            extra,
        )


def copied(batch: Any) -> Any:
    """Return ``batch`` in new containers and new tensors, so that changing it in place changes no other."""
    return map_nested(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, batch)


def _size(batch: Any) -> int:
    """Return the bytes of the tensors in ``batch``."""
    return sum(leaf.nbytes for _, leaf in leaves(batch) if isinstance(leaf, torch.Tensor))


def _zeros(leaf: Any) -> Any:
    return torch.zeros_like(leaf, device="cpu") if isinstance(leaf, torch.Tensor) else leaf


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))


__all__ = ["NOTHING", "Ends", "Step", "check_policy", "copied", "policy"]
