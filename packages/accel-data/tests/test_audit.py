"""The audit: each planted fault is caught on every rank, and honest set-ups stay silent."""

import random
import re
from itertools import islice

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from accel_core.errors import AuditError, DataError, UnknownNameError
from accel_core.testing.reference import gloo
from accel_data import prepare_data_loader, skip_first_batches
from accel_data.coverage import RowCoverage
from accel_data.fingerprint import rows_of, same_randomness, sample_marks


class Numbers(Dataset):
    def __init__(self, count, start=0, step=1):
        self.start, self.count, self.step = start, count, step

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        return torch.tensor(self.start + index * self.step)


class Stream(IterableDataset):
    """Numbers from ``start`` by ``step``, as whole numbers or as floats only."""

    def __init__(self, count, start=0, step=1, kind=int):
        self.count, self.start, self.step, self.kind = count, start, step, kind

    def __iter__(self):
        for index in range(self.start, self.count, self.step):
            yield torch.tensor(self.kind(index))


class SplitStream(Stream):
    def __iter__(self):
        info = get_worker_info()
        return islice(super().__iter__(), info.id if info else 0, None, info.num_workers if info else 1)


class Fixed(Sampler):
    """The same shuffled order in each epoch, although it says that it shuffles."""

    shuffle = True

    def __init__(self, count, seed=0):
        self.order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        return iter(self.order)


class Listed(Sampler):
    """Batches as they are."""

    def __init__(self, batches, batch_size=None):
        self.batches = batches
        if batch_size:
            self.batch_size = batch_size

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def run(build, epochs=2, limit=None, skip=0, **kwargs):
    """Prepare what ``build(rank, world)`` returns and read it; return what was read, or the error."""
    group = gloo()
    try:
        loader = build(group.rank, group.world_size)
        options = getattr(loader, "options", {})
        loader = prepare_data_loader(loader, collectives=group, **{"data_seed": 0} | options | kwargs)
        if skip:
            loader = skip_first_batches(loader, skip)
        found = [list(islice(loader, limit)) for _ in range(epochs)]
    except Exception as error:
        # Without its frames, which hold worker processes.
        found = error.with_traceback(None)
    loader = None
    # Nobody is left waiting somewhere else.
    group.barrier()
    return found


def caught(pool, world, build, match, kind=AuditError, **kwargs):
    errors = pool.run_in_group(world, lambda: run(build, **kwargs), timeout=40)
    for rank, error in enumerate(errors):
        assert type(error) is kind, (rank, error)
        assert re.search(match, str(error)), str(error)
        assert error.fix
    return errors


# -- planted faults --------------------------------------------------------------------------------


@pytest.mark.world(2, 4)
@pytest.mark.parametrize("workers", [0, 2])
def test_data_sets_that_are_parts_already(pool, world, workers):
    def strided(rank, world):
        return DataLoader(Numbers(12, rank, world), batch_size=2, shuffle=True, num_workers=workers)

    def subset(rank, world):
        whole = Subset(Numbers(12 * world), range(rank * 12, rank * 12 + 12))
        return DataLoader(whole, batch_size=2, num_workers=workers)

    errors = caught(pool, world, strided, r"another sample at index 6 on rank 1.*double-sharded")
    assert errors[0].ranks == tuple(range(world))
    assert errors[0].samples == (6,)
    assert errors[0].batch == 0
    assert "sharding='sharded'" in errors[0].fix
    caught(pool, world, subset, "double-sharded")


@pytest.mark.world(2, 4)
def test_samplers_that_are_parts_already(pool, world):
    def listed(rank, world):
        return DataLoader(Numbers(12 * world), batch_size=2, sampler=list(range(rank, 12 * world, world)))

    errors = caught(pool, world, listed, r"rank 1.* walks other samples than rank 0.*double-sharded")
    assert errors[-1].samples[:5] == (0, world, 2 * world, 3 * world, 1)
    assert "sharding='sharded'" in errors[0].fix


@pytest.mark.world(2, 4)
def test_generators_that_differ_between_ranks(pool, world):
    def build(rank, world):
        generator = torch.Generator().manual_seed(rank)
        return DataLoader(Numbers(64), batch_size=2, shuffle=True, generator=generator)

    caught(pool, world, build, "shuffle apart from each other", rng_types=[])
    assert all(isinstance(found, list) for found in pool.run_in_group(world, run, build))


@pytest.mark.world(2)
def test_a_walked_sampler_with_random_state_of_its_own(pool, world):
    class Own(Sampler):
        def __init__(self, rank):
            self.random = random.Random(rank)

        def __len__(self):
            return 40

        def __iter__(self):
            return iter(self.random.sample(range(40), 40))

    caught(
        pool,
        world,
        lambda rank, _: DataLoader(Numbers(40), batch_size=2, sampler=Own(rank)),
        "got other samples from the sampler than rank 0",
        kind=DataError,
    )


@pytest.mark.world(2, 4)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [int, float])
def test_streams_that_are_parts_already(pool, world, workers, kind):
    def build(rank, world):
        return DataLoader(Stream(64, rank, world, kind), batch_size=2, num_workers=workers)

    errors = caught(pool, world, build, r"stream begins with other samples on rank 1.*double-sharded")
    assert errors[0].ranks == tuple(range(world))
    assert "accel_sharding" in errors[0].fix


@pytest.mark.world(2, 4)
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_that_read_the_same(pool, world, workers):
    def indexed(rank, world):
        return DataLoader(Numbers(64), batch_size=2, num_workers=workers)

    def streamed(rank, world):
        return DataLoader(SplitStream(64), batch_size=2, num_workers=workers)

    def stateful(rank, world):
        from torchdata.stateful_dataloader import StatefulDataLoader

        return StatefulDataLoader(Numbers(64), batch_size=2, num_workers=workers)

    for build in (indexed, streamed, stateful):
        errors = caught(pool, world, build, "read the same .* not sharded", sharding="sharded")
        assert errors[0].ranks == tuple(range(world))
        assert "sharding='global'" in errors[0].fix


@pytest.mark.world(2)
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_that_each_read_all_of_their_rank_s_part(pool, world, workers):
    def build(rank, world):
        return DataLoader(Stream(64, rank, world), batch_size=4, num_workers=workers)

    errors = caught(pool, world, build, f"each of {workers} worker processes", sharding="sharded")
    assert errors[0].ranks == (0, 1)


@pytest.mark.world(4)
def test_two_of_four_ranks_that_read_the_same(pool, world):
    def build(rank, world):
        return DataLoader(Numbers(16, start=100 * (rank % 3)), batch_size=4)

    errors = caught(pool, world, build, "ranks 0, 3 read the same 16 samples", sharding="sharded")
    assert {error.ranks for error in errors} == {(0, 3)}


@pytest.mark.world(2, 4)
def test_ranks_that_read_the_same_in_other_orders_are_found_over_the_epoch(pool, world):
    def build(rank, world):
        generator = torch.Generator().manual_seed(rank)
        return DataLoader(Numbers(64), batch_size=4, shuffle=True, generator=generator)

    options = {"sharding": "sharded", "rng_types": [], "audit": "epoch"}
    caught(pool, world, build, "have read the same 64 samples in this epoch", **options)


@pytest.mark.world(2, 4)
def test_lost_shuffles(pool, world):
    class Forgetful(Stream):
        shuffle = True

    class Unshuffled(SequentialSampler):
        shuffle = True

    def batched(rank, world):
        return DataLoader(Numbers(64), batch_sampler=BatchSampler(Fixed(64), 4, False))

    def kept(rank, world):
        return DataLoader(Numbers(64, 64 * rank), batch_size=4, sampler=Fixed(64, rank))

    caught(pool, world, lambda *_: DataLoader(Numbers(64), sampler=Fixed(64)), "same order as the one before")
    caught(pool, world, batched, "Fixed is to shuffle, but in epoch 1")
    caught(pool, world, kept, "the shuffle is lost", sharding="sharded")
    caught(pool, world, lambda *_: DataLoader(Forgetful(64), batch_size=8), "Forgetful is to shuffle")
    errors = caught(
        pool,
        world,
        lambda *_: DataLoader(Numbers(64), sampler=Unshuffled(Numbers(64))),
        "epoch 0 the samples come one after another",
    )
    assert errors[0].samples == tuple(range(8))


@pytest.mark.world(2, 4)
def test_duplicated_tails(pool, world):
    def own_batches(rank, world):
        data = Numbers(4 * world + 1)
        sampler = DistributedSampler(data, world, rank, shuffle=False)
        batches = type("OwnBatches", (BatchSampler,), {})(sampler, 2, False)
        return DataLoader(data, batch_sampler=batches)

    def filled_up(rank, world):
        return DataLoader(Numbers(30), batch_size=2, sampler=[*range(30), *range(world * 2)])

    errors = caught(pool, world, own_batches, f"repeats {world - 1} of {4 * world + 1} samples at the end")
    assert errors[0].samples == tuple(range(world - 1))
    errors = caught(pool, world, filled_up, r"more than once in the last round \(a duplicated", audit="epoch")
    assert sorted(errors[0].samples) == list(range(world * 2))


@pytest.mark.world(2, 4)
def test_what_is_read_twice_or_never_in_an_epoch(pool, world):
    def broken():
        group = gloo()
        loader = DataLoader(Numbers(64), batch_size=2)
        loader = prepare_data_loader(loader, collectives=group, audit="epoch")
        loader.batch_sampler.process_index = 0
        try:
            list(loader)
        except AuditError as error:
            return str(error), error.samples
        return None

    for text, samples in pool.run_in_group(world, broken):
        assert "were read more than once, for example" in text
        assert samples[:3] == (0, 1, 2 * world)


# -- honest set-ups --------------------------------------------------------------------------------


def with_options(loader, **options):
    loader.options = options
    return loader


class Augmented(Dataset):
    def __len__(self):
        return 50

    def __getitem__(self, index):
        return torch.rand(3) + index, random.random(), index


class OwnNoise(Dataset):
    """A generator of its own, seeded by rank: no two ranks see the same."""

    def __init__(self, rank):
        self.generator = torch.Generator().manual_seed(rank)

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return torch.rand(3, generator=self.generator)


class OwnPythonNoise(OwnNoise):
    def __init__(self, rank):
        self.generator = random.Random(rank)

    def __getitem__(self, index):
        return self.generator.random()


class Counting(Dataset):
    """Not the same twice."""

    reads = 0

    def __init__(self, rank):
        self.rank = rank

    def __len__(self):
        return 50

    def __getitem__(self, index):
        Counting.reads += 1 + self.rank
        return torch.tensor(Counting.reads)


class NoiseStream(IterableDataset):
    """Random values under equal names, or without any."""

    def __init__(self, named):
        self.named = named

    def __iter__(self):
        for index in range(50):
            yield (torch.rand(4), f"sample {index}") if self.named else torch.rand(4)


class OwnStream(Stream):
    accel_sharding = "sharded"


class WholeBatches(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(40).split(4))


class Constant(IterableDataset):
    accel_sharding = "sharded"

    def __iter__(self):
        for _ in range(40):
            yield torch.zeros(3)


def distributed(rank, world, **kwargs):
    data = Numbers(101)
    sampler = DistributedSampler(data, world, rank, **kwargs)
    return DataLoader(data, batch_size=4, sampler=sampler)


def hf(rank, world, *, change=lambda data, rank, world: data, **kwargs):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"number": list(range(96)), "text": [f"text {n}" for n in range(96)]})
    return DataLoader(change(data, rank, world), batch_size=4, **kwargs)


def hf_node(data, rank, world):
    from datasets.distributed import split_dataset_by_node

    return split_dataset_by_node(data.to_iterable_dataset(num_shards=8), rank, world)


def stateful(rank, world):
    pytest.importorskip("torchdata")
    return with_options(DataLoader(Numbers(50), batch_size=4, shuffle=True), use_stateful_dataloader=True)


ONE_HOT = torch.eye(4).repeat(16, 1)
BUCKETS = [[n, n + 1, n + 2][: 1 + n % 3] for n in range(0, 60, 3)]

HONEST = {
    "sequential": lambda *_: DataLoader(Numbers(50), batch_size=4),
    "shuffled": lambda *_: DataLoader(Numbers(50), batch_size=4, shuffle=True),
    "own generator": lambda *_: DataLoader(
        Numbers(50), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "subset random": lambda *_: DataLoader(Numbers(50), batch_size=4, sampler=SubsetRandomSampler(range(30))),
    "weighted": lambda *_: DataLoader(
        Numbers(50), batch_size=4, sampler=WeightedRandomSampler([1.0] * 49 + [50.0], 60)
    ),
    "one sample again and again": lambda *_: DataLoader(
        Numbers(50), batch_size=4, sampler=WeightedRandomSampler([0.0] * 49 + [1.0], 60)
    ),
    "with replacement": lambda *_: DataLoader(
        Numbers(50), batch_size=4, sampler=RandomSampler(range(50), replacement=True, num_samples=70)
    ),
    "oversampled": lambda *_: DataLoader(Numbers(50), batch_size=4, sampler=[*range(50), *range(10)] * 2),
    "sorted by length": lambda *_: DataLoader(Numbers(50), batch_size=4, sampler=list(reversed(range(50)))),
    "buckets": lambda *_: DataLoader(Numbers(62), batch_sampler=Listed(BUCKETS, 3)),
    "dynamic sizes": lambda *_: with_options(
        DataLoader(Numbers(62), batch_sampler=Listed(BUCKETS)), even_batches=False
    ),
    "distributed sampler": distributed,
    "distributed sampler, drop_last": lambda *a: distributed(*a, drop_last=True, shuffle=False),
    "drop_last": lambda *_: DataLoader(Numbers(50), batch_size=4, shuffle=True, drop_last=True),
    "split_batches": lambda *_: with_options(DataLoader(Numbers(50), batch_size=8), split_batches=True),
    "uneven": lambda *_: with_options(DataLoader(Numbers(50), batch_size=4), even_batches=False),
    "stopped together": lambda *_: with_options(
        DataLoader(Numbers(50), batch_size=4), even_batches=False, uneven="stop_all"
    ),
    "begun again": lambda *_: with_options(
        DataLoader(Numbers(50), batch_size=4, shuffle=True), even_batches=False, uneven="cycle"
    ),
    "dispatched": lambda *_: with_options(DataLoader(Stream(50), batch_size=4), dispatch_batches=True),
    "stateful": stateful,
    "augmented": lambda *_: DataLoader(Augmented(), batch_size=4, shuffle=True),
    "noise of its own": lambda rank, _: DataLoader(OwnNoise(rank), batch_size=4),
    "noise of Python": lambda rank, _: DataLoader(OwnPythonNoise(rank), batch_size=4),
    "not the same twice": lambda rank, _: DataLoader(Counting(rank), batch_size=4),
    "constant data": lambda *_: DataLoader(TensorDataset(torch.zeros(50, 3)), batch_size=4, shuffle=True),
    "one-hot parts": lambda *_: with_options(DataLoader(ONE_HOT, batch_size=4), sharding="sharded"),
    "one sample": lambda *_: DataLoader(Numbers(1), batch_size=4, shuffle=True),
    "few samples": lambda *_: DataLoader(Numbers(3), shuffle=True),
    "stream": lambda *_: DataLoader(Stream(50), batch_size=4),
    "stream of whole batches": lambda *_: DataLoader(WholeBatches(), batch_size=None),
    "empty stream": lambda *_: DataLoader(Stream(0), batch_size=4),
    "augmented stream": lambda rank, _: (
        torch.manual_seed(rank) and DataLoader(NoiseStream(True), batch_size=4)
    ),
    "noise stream": lambda rank, _: torch.manual_seed(rank) and DataLoader(NoiseStream(False), batch_size=4),
    "own streams": lambda rank, world: DataLoader(OwnStream(50, rank, world), batch_size=4),
    "constant own streams": lambda *_: DataLoader(Constant(), batch_size=4),
    "own streams, split": lambda rank, world: with_options(
        DataLoader(SplitStream(80, rank, world), batch_size=4), sharding="sharded"
    ),
    "own parts": lambda rank, world: with_options(
        DataLoader(Numbers(20 + rank, 100 * rank), batch_size=4), sharding="sharded"
    ),
    "datasets": lambda *a: hf(*a, shuffle=True),
    "datasets, shard": lambda *a: hf(*a, change=lambda data, rank, world: data.shard(world, rank)),
    "datasets, stream": lambda *a: hf(*a, change=lambda data, *_: data.to_iterable_dataset(num_shards=8)),
    "datasets, odd stream": lambda *a: hf(*a, change=lambda data, *_: data.to_iterable_dataset(num_shards=3)),
    "datasets, shuffled stream": lambda *a: hf(
        *a, change=lambda data, *_: data.to_iterable_dataset(num_shards=8).shuffle(seed=1, buffer_size=20)
    ),
    "datasets, node": lambda *a: hf(*a, change=hf_node),
    "datasets, sharded stream": lambda *a: hf(
        *a, change=lambda data, rank, world: data.to_iterable_dataset(num_shards=8).shard(world, rank)
    ),
}


def in_one_call(names, audit, change=lambda loader: loader):
    """Run several set-ups on the living ranks; return what went wrong, by name."""

    def build(name):
        return lambda rank, world: change(HONEST[name](rank, world))

    found = {name: run(build(name), audit=audit) for name in names}
    return {name: repr(result) for name, result in found.items() if not isinstance(result, list)}


@pytest.mark.world(2, 4)
@pytest.mark.parametrize("audit", ["first_batches", "epoch"])
@pytest.mark.parametrize("part", range(4))
def test_honest_set_ups_stay_silent(pool, world, part, audit):
    names = list(HONEST)[part::4]
    assert pool.run_in_group(world, lambda: in_one_call(names, audit), timeout=50) == [{}] * world


WITH_WORKERS = [
    "sequential",
    "shuffled",
    "weighted",
    "distributed sampler",
    "augmented",
    "stream",
    "own streams, split",
]
WITH_WORKERS += ["augmented stream", "datasets, stream", "datasets, odd stream", "few samples", "buckets"]


@pytest.mark.world(2)
@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("persistent", [False, True])
def test_honest_set_ups_with_workers_stay_silent(pool, world, part, persistent):
    def with_workers(loader):
        # Afterwards, so that the same set-ups serve.
        loader.__dict__.update(num_workers=2, prefetch_factor=2, persistent_workers=persistent)
        return loader

    names = WITH_WORKERS[part::3]
    found = pool.run_in_group(world, lambda: in_one_call(names, "epoch", with_workers), timeout=60)
    assert found == [{}] * world


# -- no rank is left waiting -------------------------------------------------------------------------


@pytest.mark.world(2, 4)
@pytest.mark.parametrize("audit", ["first_batches", "epoch"])
def test_loops_that_are_left_early_and_loaders_that_are_short(pool, world, audit):
    def read():
        seen = []
        for name, limit in (
            ("shuffled", 1),
            ("stream", 2),
            ("own streams", 1),
            ("own parts", 3),
            ("uneven", 1),
        ):
            seen.append([len(part) for part in run(HONEST[name], epochs=3, limit=limit, audit=audit)])
        short = {"even_batches": False, "audit": audit}
        seen.append([len(part) for part in run(lambda *_: DataLoader(Numbers(3), batch_size=2), **short)])
        kept = {"sharding": "sharded", "audit": audit, "even_batches": False}
        own = run(lambda rank, _: DataLoader(Numbers(2 * rank), batch_size=2), **kept)
        seen.append([len(part) for part in own])
        seen.append([len(part) for part in run(HONEST["shuffled"], skip=2, audit=audit)])
        return seen

    for rank, seen in enumerate(pool.run_in_group(world, read, timeout=50)):
        assert seen[:5] == [[1] * 3, [2] * 3, [1] * 3, [3] * 3, [1] * 3]
        assert seen[5] == [int(rank < 2)] * 2
        assert seen[6] == [rank, rank]


@pytest.mark.world(2)
def test_a_rank_that_fails_to_read_has_told_the_others_first(pool, world):
    class Broken(Numbers):
        def __getitem__(self, index):
            if dist.get_rank() and index == 1:
                raise LookupError("no sample 1")
            return super().__getitem__(index)

    def read():
        found = run(
            lambda rank, _: DataLoader(Broken(8, 8 * rank)), sharding="sharded", even_batches=False, epochs=1
        )
        return repr(found)

    assert pool.run_in_group(world, read)[1] == "LookupError('no sample 1')"


# -- what it leaves as it was ----------------------------------------------------------------------


@pytest.mark.world(2)
def test_an_audited_loop_reads_what_an_unaudited_one_reads(pool, world):
    def read(audit):
        torch.manual_seed(5)
        random.seed(5)
        loader = DataLoader(Augmented(), batch_size=4, shuffle=True, num_workers=0)
        found = run(lambda *_: loader, audit=audit)
        return [[values.tolist() for values in batch] for part in found for batch in part]

    for on, off in pool.run_in_group(world, lambda: (read("epoch"), read("off"))):
        assert on == off


@pytest.mark.world(2)
def test_worker_init_fn_is_called_and_comes_back(pool, world):
    def init(worker):
        torch.utils.data.get_worker_info().dataset.start = 1000

    def read():
        loader = DataLoader(Numbers(16), batch_size=4, num_workers=1, worker_init_fn=init)
        loader = prepare_data_loader(loader, collectives=gloo())
        values = torch.cat(list(loader)).tolist()
        return values, loader.worker_init_fn is init

    ranks = pool.run_in_group(world, read)
    assert sorted(ranks[0][0] + ranks[1][0]) == list(range(1000, 1016))
    assert ranks[0][1]


@pytest.mark.world(2)
def test_off_looks_at_nothing(pool, world):
    def build(rank, world):
        return DataLoader(Numbers(12, rank, world), batch_size=2)

    for found in pool.run_in_group(world, lambda: run(build, audit="off")):
        assert isinstance(found, list)


def test_an_unknown_word_has_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'first_batches'"):
        prepare_data_loader(DataLoader(Numbers(4)), audit="first_batch")


# -- fingerprints ----------------------------------------------------------------------------------


def test_rows_are_told_apart_wherever_they_stand():
    batch = {"x": torch.arange(12.0).view(4, 3), "text": ["a", "b", "c", "d"], "count": 4}
    rows = rows_of(batch)
    assert len(set(rows)) == 4
    assert rows_of({"x": batch["x"][[2, 0]], "text": ["c", "a"]}) == [rows[2], rows[0]]
    assert rows_of({"x": batch["x"], "text": ["a", "b", "c", "e"]})[:3] == rows[:3]
    assert rows_of({"x": batch["x"], "text": ["a", "b", "c", "e"]})[3] != rows[3]


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.complex64, torch.bool, torch.uint8, torch.int64]
)
def test_rows_of_every_kind_of_number(dtype):
    values = torch.tensor([[0.0, 1], [1, 1], [1, 0]]).to(dtype)
    assert len(set(rows_of(values))) == 3
    assert rows_of([values[1:]]) == rows_of([values])[1:]


@pytest.mark.parametrize(
    "odd", [None, 3, "text", [], {}, torch.tensor(2), torch.eye(3).to_sparse(), [object()]]
)
def test_what_has_no_rows_says_nothing(odd):
    assert len(rows_of(odd)) <= 3


def test_regular_parts_have_sums_of_their_own():
    """Sums of plain checksums agree between many of these."""

    class Loader:
        class _plan:
            watch_ends = False

    sums = set()
    for start in range(16):
        cover = RowCoverage()
        cover.begin(Loader, None)
        for batch in torch.arange(start, 320, 16).split(4):
            cover.note(batch)
        sums.add(cover.record().total)
    assert len(sums) == 16


def test_names_and_values_are_apart():
    assert sample_marks((torch.rand(3), "a", 3))[0] == sample_marks((torch.rand(3), "a", 3))[0]
    assert sample_marks(torch.rand(3))[0] == 0
    assert sample_marks(torch.tensor(3))[1] == 0
    assert sample_marks({"text": "a"}) != sample_marks({"text": "b"})


def test_reading_with_the_same_randomness_leaves_the_generators_where_they_were():
    torch.manual_seed(1)
    random.seed(1)
    expected = torch.rand(1), random.random()
    torch.manual_seed(1)
    random.seed(1)
    with same_randomness():
        first = torch.rand(1), random.random()
    with same_randomness():
        assert (torch.rand(1), random.random()) == first
    assert (torch.rand(1), random.random()) == expected
