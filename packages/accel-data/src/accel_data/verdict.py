"""What follows from the words of all ranks on what they are about to read. Every rank judges alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log2
from typing import Any, NamedTuple

from accel_core.errors import AuditError

from .fingerprint import Marks

_FEW = 8
"""Rows below which equal data may be chance."""
_SURE = 40.0
"""Bits of chance below which an order may repeat by itself."""

_OFF = "DataLoaderConfiguration(audit='off') leaves out this check"


@dataclass(slots=True)
class Seen:
    """What one rank says about an iteration."""

    shuffles: bool
    epoch: int
    order: list[Any] | None = None
    """The first indices of the order that all ranks share."""
    walked: bool = False
    """The order comes from a sampler whose first round is compared by the loader itself."""
    probe: Marks = (0, 0)
    place: int | None = None
    head: Marks = (0, 0)
    rows: list[int] = field(default_factory=list)
    workers: int = 0
    """Worker processes that each read all of this rank's part; 0: they do not."""
    lost: str | bool = False


def repeating_workers(batches: list[list[int]], workers: int) -> int:
    """Return ``workers`` when each of them gives the same batches, in turn, and 0 otherwise."""
    turns = [batches[at : at + workers] for at in range(0, len(batches) - workers + 1, max(1, workers))]
    if workers < 2 or len(turns) < 2 or any(turn.count(turn[0]) < workers for turn in turns):
        return 0
    return workers if len({row for turn in turns for row in turn[0]}) >= _FEW else 0


def length_of(dataset: Any) -> int:
    """Return the length of a data set, 0 when it has none."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError, AttributeError):
        return 0


class Order(NamedTuple):
    """How an epoch begins, and whether two shuffles could begin so by chance."""

    mark: tuple[Any, ...]
    distinct: int
    bits: float | None
    """The bits of chance in it; None: as many as there are orders of what is distinct."""

    @classmethod
    def of_indices(cls, first: list[Any] | None, length: int) -> Order:
        """Return the order that begins with these indices of ``length``."""
        first = first or []
        bits = sum(log2(max(1, length - place)) for place in range(min(len(first), length)))
        return cls(tuple(first), len(set(map(repr, first))), bits)

    @classmethod
    def of_rows(cls, rows: list[int]) -> Order:
        """Return the order that begins with these rows."""
        return cls(tuple(rows), len(set(rows)), None)

    def sure(self) -> bool:
        """Tell whether a shuffle would not give the same beginning twice."""
        if self.bits is None:
            return self.distinct >= 2 * _FEW
        return self.bits >= _SURE and self.distinct * 2 > len(self.mark)

    def lost(self, before: Order | None) -> str | bool:
        """Return how a shuffle was lost, or False."""
        if not self.sure():
            return False
        common = 0 if before is None else min(len(before.mark), len(self.mark))
        if before is not None and common * 2 > len(self.mark) and before.mark[:common] == self.mark[:common]:
            return "the epoch has the same order as the one before"
        whole = self.bits is not None and all(isinstance(item, int) for item in self.mark)
        if whole and all(b - a == 1 for a, b in zip(self.mark, self.mark[1:], strict=False)):
            return "the samples come one after another, as they are stored"
        return False


def needs_proof(doubt: AuditError) -> bool:
    """Tell whether ``doubt`` rests on values that could be changed at random."""
    return doubt.__dict__.get("values_only", False) is True


def judge(seen: list[Seen], rank: int, name: str) -> AuditError | None:
    """Return what is wrong with what the ranks read, or None. ``name``: of the sampler or the stream."""
    return (
        _orders(seen, rank, name)
        or _probes(seen, rank)
        or _heads(seen, rank, name)
        or _workers(seen, rank, name)
        or _rows(seen, rank)
        or _lost(seen, rank, name)
    )


def _orders(seen: list[Seen], rank: int, name: str) -> AuditError | None:
    orders = [item.order for item in seen]
    if any(order is None or item.walked for order, item in zip(orders, seen, strict=True)):
        return None
    odd = [place for place, order in enumerate(orders) if order != orders[0]]
    if not odd:
        return None
    first, other = orders[0] or [], orders[odd[0]] or []
    apart = not set(map(repr, first)) & set(map(repr, other))
    why = (
        "each rank's sampler has its own part already (double-sharded)"
        if apart
        else "their samplers shuffle apart from each other"
    )
    fix = (
        "pass sharding='sharded' if every rank's sampler gives its own part, or one sampler for all data"
        if apart
        else "shuffle with generators that start alike: keep rng_types=['generator'], or seed them the same"
    )
    return AuditError(
        f"rank {_listed(odd)} walks other samples than rank 0, {_short(other)} instead of {_short(first)}, "
        f"before the data is divided: {why}, so some samples would be read twice and others never",
        ranks=[0, *odd],
        batch=0,
        samples=[*first[:4], *other[:4]],
        where=f"rank {rank}, {name}, first batches",
        fix=fix,
    )


def _probes(seen: list[Seen], rank: int) -> AuditError | None:
    marks = [item.probe for item in seen]
    if len(set(marks)) == 1 or (0, 0) in marks:
        return None
    odd = [place for place, mark in enumerate(marks) if mark != marks[0]]
    place = seen[rank].place
    return AuditError(
        f"the data set holds another sample at index {place} on rank {_listed(odd)} than on rank 0: each "
        "rank has its own part already, and dividing it again (double-sharded) leaves all but "
        f"1/{len(seen)} of it unread",
        ranks=[0, *odd],
        batch=0,
        samples=[place],
        where=f"rank {rank}, data set of the loader",
        fix="pass sharding='sharded' if every rank has its own part, or give every rank the whole data in "
        f"the same order (random data with the same seed); {_OFF}",
    )


def _heads(seen: list[Seen], rank: int, name: str) -> AuditError | None:
    names = [item.head[0] for item in seen]
    values = [item.head[1] for item in seen]
    by_name = 0 not in names and len(set(names)) > 1
    by_value = not any(names) and 0 not in values and len(set(values)) > 1
    if not by_name and not by_value:
        return None
    marks = names if by_name else values
    odd = [place for place, mark in enumerate(marks) if mark != marks[0]]
    error = AuditError(
        f"the stream begins with other samples on rank {_listed(odd)} than on rank 0: each rank reads its "
        f"own part or order already, and of that every rank would keep 1/{len(seen)} only (double-sharded)",
        ranks=[0, *odd],
        batch=0,
        where=f"rank {rank}, {name}",
        fix="pass sharding='sharded' if every rank reads its own part (or set accel_sharding = 'sharded' on "
        f"the data set), or let every rank read the same stream, shuffled with the same seed; {_OFF}",
    )
    error.__dict__["values_only"] = by_value
    return error


def _rows(seen: list[Seen], rank: int) -> AuditError | None:
    telling = [
        (place, item.rows)
        for place, item in enumerate(seen)
        # Data that repeats on one rank may repeat on two.
        if len(item.rows) >= _FEW and len(set(item.rows)) * 10 >= len(item.rows) * 9
    ]
    for number, (place, rows) in enumerate(telling):
        same = [other for other, found in telling[number + 1 :] if found == rows]
        if same:
            return AuditError(
                f"ranks {_listed([place, *same])} read the same {len(rows)} samples in their first batches: "
                "the data is not sharded",
                ranks=[place, *same],
                batch=0,
                where=f"rank {rank}, first batches",
                fix="pass sharding='global' (or nothing) and let accel divide the data, or give each rank "
                f"its own part; {_OFF}",
            )
    return None


def _workers(seen: list[Seen], rank: int, name: str) -> AuditError | None:
    ranks = [place for place, item in enumerate(seen) if item.workers]
    if not ranks:
        return None
    count = seen[ranks[0]].workers
    return AuditError(
        f"each of {count} worker processes of rank {_listed(ranks)} reads all of {name}, so every sample "
        f"comes {count} times",
        ranks=ranks,
        batch=1,
        where=f"rank {rank}, {name}, first batches",
        fix="let the data set read its part by torch.utils.data.get_worker_info(), use num_workers=1, or let "
        f"accel divide the data (sharding='global'), which deals it out to the workers; {_OFF}",
    )


def _lost(seen: list[Seen], rank: int, name: str) -> AuditError | None:
    ranks = [place for place, item in enumerate(seen) if item.lost]
    if not ranks:
        return None
    found = seen[ranks[0]]
    return AuditError(
        f"the shuffle is lost: {name} is to shuffle, but in epoch {found.epoch} {found.lost} on rank "
        f"{_listed(ranks)}",
        ranks=ranks,
        batch=0,
        samples=(found.order or [])[:8],
        where=f"rank {rank}, {name}, first batches",
        fix="give the sampler or data set a set_epoch(epoch) that changes its order, or a generator that is "
        f"not seeded anew in each epoch; {_OFF}",
    )


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))


def _short(order: list[Any]) -> str:
    text = ", ".join(map(str, order[:4]))
    return f"[{text}{', ...' if len(order) > 4 else ''}]"


__all__ = ["Order", "Seen", "judge", "length_of", "needs_proof"]
