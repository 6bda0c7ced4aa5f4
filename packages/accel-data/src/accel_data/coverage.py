"""Which samples all ranks together have read in an epoch: none twice, none never."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any, NamedTuple, Protocol

from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, WeightedRandomSampler

from accel_core.errors import AuditError

from .batches import BatchSamplerShard
from .fingerprint import rows_of
from .samplers import samplers_of
from .tail import Tail

_OFF = "DataLoaderConfiguration(audit='first_batches') looks at the first batches only"


class Record(NamedTuple):
    """What one rank has read."""

    keys: Any = ()
    """Indices in the order they were read."""
    last: int = 0
    """How many of them are in the last round."""
    late: int = 0
    """How many are in the last two rounds."""
    padding: int = 0
    """Samples of the last round, over all ranks, that are known to be padding."""
    rows: int = 0
    total: int = 0
    distinct: int = 0


class Coverage(Protocol):
    """Follow one iteration, and judge the records of all ranks."""

    def begin(self, loader: Any, tail: Tail) -> None:
        """Forget the iteration before."""
        ...

    def note(self, batch: Any) -> Any:
        """Look at a batch, and return it."""
        ...

    def record(self) -> Record | None:
        """Return what was read; None: not known."""
        ...

    def judge(self, records: list[Record | None], rank: int) -> None:
        """Raise AuditError for what was read twice or never."""
        ...


class IndexCoverage:
    """Follow the indices that accel hands to each rank's data set."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        plain = type(loader.batch_sampler) is BatchSampler
        sampler = samplers_of(loader)[-1]
        self.whole = plain and (
            type(sampler) is SequentialSampler
            or (type(sampler) is RandomSampler and not sampler.replacement and sampler._num_samples is None)
        )
        """Every sample is expected once."""
        self.repeats = (
            isinstance(sampler, (RandomSampler, WeightedRandomSampler)) and bool(sampler.replacement)
        ) or (isinstance(sampler, RandomSampler) and not self.whole)
        self.length = 0
        self.shard: Any = None
        self.tail = Tail()

    def begin(self, loader: Any, tail: Tail) -> None:
        """Follow what the batch sampler of ``loader`` gives out from now on."""
        shard = loader._batches
        self.tail = tail
        self.shard = shard if isinstance(shard, BatchSamplerShard) else None
        self.length = len(loader.dataset) if self.whole else 0

    def note(self, batch: Any) -> Any:
        """Return the batch: its indices are known."""
        return batch

    def record(self) -> Record | None:
        """Return the indices of this rank."""
        if self.shard is None or not self.shard.record:
            return None if self.shard is None else Record()
        keys = [key for batch in self.shard.record for key in batch]
        whole = all(type(key) is int for key in keys)
        valid, world_batch = self.tail.valid, self.tail.world_batch
        padding = 0 if valid is None or world_batch is None else world_batch - valid
        parts, rank = self.tail.parts, self.shard.process_index
        last = len(self.shard.record[-1]) if parts is None else parts[rank]
        late = last + sum(map(len, self.shard.record[-2:] if last == 0 else self.shard.record[-2:-1]))
        return Record(array("q", keys) if whole else keys, last, late, padding)

    def judge(self, records: list[Record | None], rank: int) -> None:
        """Raise AuditError for samples that were read twice or never."""
        found = [record for record in records if record is not None]
        if len(found) < len(records) or not any(len(record.keys) for record in found):
            return
        body: list[Any] = []
        late: list[Any] = []
        last: list[Any] = []
        for record in found:
            count = len(record.keys)
            body.extend(record.keys[: count - record.late])
            late.extend(record.keys[count - record.late : count - record.last])
            last.extend(record.keys[count - record.last :])
        last = late + last[: len(last) - max(item.padding for item in found)]
        counts = Counter(body)
        if not self.repeats:
            self._refuse_twice(counts, Counter(last), found, rank)
        if self.whole and not self.shard.drop_last:
            tail = set(last)
            missing = [key for key in range(self.length) if key not in counts and key not in tail]
            if missing:
                raise AuditError(
                    f"{len(missing)} of {self.length} samples were read by no rank, for example "
                    f"{', '.join(map(str, missing[:8]))}",
                    ranks=range(len(records)),
                    samples=missing[:8],
                    where=f"rank {rank}, end of the epoch",
                    fix=f"let the sampler give every index once; {_OFF}",
                )

    def _refuse_twice(self, body: Counter[Any], last: Counter[Any], found: list[Record], rank: int) -> None:
        early = [key for key, count in body.items() if count > 1]
        late = [key for key, count in last.items() if count > 1 or key in body]
        extra = sum(last[key] - (key not in body) for key in late)
        once = (
            not early
            and sum(body.values()) >= sum(last.values())
            and extra <= (self.shard.round_size or extra)
        )
        if not self.whole and not once:
            return  # a sampler that draws some samples more often, on purpose
        twice = early or late
        if not twice:
            return
        ranks = [place for place, record in enumerate(found) if set(twice[:8]) & set(record.keys)]
        tail = "" if early else " in the last round (a duplicated tail)"
        raise AuditError(
            f"{len(twice)} samples were read more than once{tail}, for example "
            f"{', '.join(map(str, twice[:8]))}; they are not known as padding, and count twice in metrics",
            ranks=ranks,
            batch=len(found[rank].keys),
            samples=twice[:8],
            where=f"rank {rank}, end of the epoch",
            fix="do not fill up the end in the sampler: even_batches does it, and its padding is known; "
            f"{_OFF}",
        )


class RowCoverage:
    """Follow the rows of ranks that keep their own parts; their sum does not depend on the order."""

    def __init__(self) -> None:
        self.rows = self.total = 0
        self.seen: set[int] = set()
        self.carries = False

    def begin(self, loader: Any, tail: Tail) -> None:
        """Start at nothing."""
        self.rows = self.total = 0
        self.seen = set()
        self.carries = loader._plan.watch_ends

    def note(self, batch: Any) -> Any:
        """Add the rows of a batch."""
        rows = rows_of(batch[0] if self.carries else batch, most=1 << 30)
        self.rows += len(rows)
        # Mixed again: checksums are linear, so regular data of two ranks can have equal sums of them.
        self.total = (self.total + sum(hash((row,)) for row in rows)) & ((1 << 61) - 1)
        if len(self.seen) < 4096:
            self.seen.update(rows)
        return batch

    def record(self) -> Record | None:
        """Return the sum."""
        return Record(rows=self.rows, total=self.total, distinct=len(self.seen))

    def judge(self, records: list[Record | None], rank: int) -> None:
        """Raise AuditError for ranks that have read the same samples, in whatever order."""
        sums: dict[tuple[int, int], list[int]] = {}
        for place, record in enumerate(records):
            if (
                record is not None
                and record.distinct >= 8
                and record.distinct * 10 >= min(record.rows, 4096) * 9
            ):
                sums.setdefault((record.rows, record.total), []).append(place)
        for (rows, _), ranks in sums.items():
            if len(ranks) > 1:
                raise AuditError(
                    f"ranks {', '.join(map(str, ranks))} have read the same {rows} samples in this epoch: "
                    "the data is not sharded",
                    ranks=ranks,
                    where=f"rank {rank}, end of the epoch",
                    fix="pass sharding='global' (or nothing) and let accel divide the data, or give each "
                    f"rank its own part; {_OFF}",
                )


__all__ = ["Coverage", "IndexCoverage", "Record", "RowCoverage"]
