"""Who divides the data: what is sharded already is kept, samplers are kept, plain data is divided."""

from itertools import chain

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    WeightedRandomSampler,
)

from accel_core.errors import AlreadyShardedError, DataError, PrepareError, UnknownNameError
from accel_core.testing.reference import gloo
from accel_core.window import GradientWindow
from accel_data import IterableDatasetShard, SeedableRandomSampler, prepare_data_loader, skip_first_batches
from accel_data.contract import declared


class Numbers(Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.tensor(index)


class Stream(IterableDataset):
    def __init__(self, count, start=0, step=1):
        self.numbers = range(start, count, step)

    def __iter__(self):
        return iter(map(torch.tensor, self.numbers))


class Declared(Stream):
    """A stream that says of itself that it reads one rank's part."""

    accel_sharding = "sharded"

    def __init__(self, count, rank, world):
        super().__init__(count, rank, world)
        self.num_replicas, self.rank = world, rank


def lists(loader):
    return [batch.tolist() for batch in loader]


def flat(loader):
    return list(chain.from_iterable(lists(loader)))


def on_ranks(world, build, **kwargs):
    """What simulated ranks read, one after the other."""
    return [
        flat(prepare_data_loader(build(rank, world), num_processes=world, process_index=rank, **kwargs))
        for rank in range(world)
    ]


def distributed(rank, world, count=24, **kwargs):
    data = Numbers(count)
    return DataLoader(data, batch_size=2, sampler=DistributedSampler(data, world, rank, **kwargs))


class TestKept:
    @pytest.mark.parametrize("sharding", ["auto", "sharded"])
    @pytest.mark.parametrize("world", [2, 4])
    def test_a_distributed_sampler(self, world, sharding):
        ranks = on_ranks(world, distributed, sharding=sharding)
        assert sorted(chain.from_iterable(ranks)) == list(range(24))
        assert ranks[1] == flat(distributed(1, world))

    def test_one_inside_a_batch_sampler_of_anybody(self):
        class Twos(BatchSampler):
            pass

        def build(rank, world):
            data = Numbers(24)
            return DataLoader(data, batch_sampler=Twos(DistributedSampler(data, world, rank), 2, False))

        assert sorted(chain.from_iterable(on_ranks(2, build))) == list(range(24))

    @pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
    @pytest.mark.parametrize("workers", [0, 2])
    def test_one_under_torchdata(self, workers):
        stateful = pytest.importorskip("torchdata.stateful_dataloader")

        def build(rank, world):
            data = Numbers(24)
            sampler = DistributedSampler(data, world, rank)
            return stateful.StatefulDataLoader(data, batch_size=2, sampler=sampler, num_workers=workers)

        assert sorted(chain.from_iterable(on_ranks(2, build))) == list(range(24))

    def test_its_epoch_is_told(self):
        loader = prepare_data_loader(distributed(0, 2), num_processes=2, process_index=0)
        first, second = flat(loader), flat(loader)
        plain = distributed(0, 2)
        expected = [flat(plain)]
        plain.sampler.set_epoch(1)
        assert [first, second] == [*expected, flat(plain)]
        assert loader.sampler.epoch == 2

    def test_streams_that_say_so(self):
        ranks = on_ranks(2, lambda rank, world: DataLoader(Declared(24, rank, world), batch_size=2))
        assert ranks == [list(range(0, 24, 2)), list(range(1, 24, 2))]

        def attribute(rank, world):
            stream = Stream(24, rank, world)
            stream.accel_sharding = "sharded"
            return DataLoader(stream, batch_size=2)

        assert on_ranks(2, attribute) == ranks
        ours = on_ranks(
            2, lambda rank, world: DataLoader(IterableDatasetShard(Stream(8), 2, False, world, rank))
        )
        assert ours == [[0, 1, 4, 5], [2, 3, 6, 7]]

    def test_what_somebody_only_says_here(self):
        def build(rank, world):
            return DataLoader(Stream(24, rank, world), batch_size=2)

        assert on_ranks(2, build, sharding="sharded") == [list(range(0, 24, 2)), list(range(1, 24, 2))]
        assert sorted(chain.from_iterable(on_ranks(2, build))) != list(range(24)), "auto cannot know"

    def test_the_loader_is_told_apart_in_nothing_else(self):
        plain = distributed(1, 2)
        window = GradientWindow()
        kept = prepare_data_loader(plain, num_processes=2, process_index=1, window=window)
        assert kept.sampler is plain.sampler
        assert kept.batch_sampler is plain.batch_sampler
        assert kept.collate_fn is plain.collate_fn
        assert len(kept) == len(plain) == 6
        for number, _ in enumerate(kept):
            assert window.active.remaining == 6 - number
            assert window.active.end == (number == 5)

    def test_its_first_batches_can_be_skipped(self):
        window = GradientWindow()
        kept = prepare_data_loader(distributed(1, 2), num_processes=2, process_index=1, window=window)
        skipped = skip_first_batches(kept, 4)
        ends = []
        assert [(batch.tolist(), ends.append(window.active.end))[0] for batch in skipped] == lists(
            distributed(1, 2)
        )[4:]
        assert ends == [False, True]
        assert kept.iteration == 1

    def test_containers_of_data_sets_are_looked_into(self):
        part = Declared(8, 0, 2)
        assert declared(DataLoader(ConcatDataset([Numbers(3), Numbers(4)]))) is None
        assert declared(DataLoader(Subset(Numbers(3), [0]))) is None
        data = Numbers(8)
        data.accel_sharding = "sharded"
        assert declared(DataLoader(ConcatDataset([Numbers(3), data]))).by == "Numbers"
        assert declared(DataLoader(Subset(data, [0]))).by == "Numbers"
        assert declared(DataLoader(part)) == ("Declared", 2, 0)


class TestRefusals:
    @pytest.mark.parametrize(("replicas", "rank"), [(1, 0), (4, 0), (2, 1)])
    @pytest.mark.parametrize("sharding", ["auto", "sharded"])
    def test_other_ranks_than_ours(self, replicas, rank, sharding):
        words = f"DistributedSampler was made for rank {rank} of {replicas}, but this is rank 0 of 2"
        with pytest.raises(PrepareError, match=words):
            prepare_data_loader(
                distributed(rank, replicas), num_processes=2, process_index=0, sharding=sharding
            )
        if rank < replicas:
            with pytest.raises(PrepareError, match=f"Declared was made for rank {rank} of {replicas}"):
                prepare_data_loader(DataLoader(Declared(8, rank, replicas)), num_processes=2, process_index=0)

    def test_global_for_what_is_a_part(self):
        for loader in (distributed(0, 2), DataLoader(Declared(8, 0, 2))):
            with pytest.raises(AlreadyShardedError, match=r"leave out all but 1/2") as caught:
                prepare_data_loader(loader, num_processes=2, process_index=0, sharding="global")
            assert "sharding='auto'" in caught.value.fix

    @pytest.mark.parametrize("word", ["dispatch_batches", "split_batches"])
    def test_what_needs_the_whole_data(self, word):
        with pytest.raises(PrepareError, match=f"{word}=True needs the whole data"):
            prepare_data_loader(distributed(0, 2), num_processes=2, process_index=0, **{word: True})

    @pytest.mark.parametrize("word", ["shard", "Auto", None, 3])
    def test_unknown_words(self, word):
        with pytest.raises(UnknownNameError, match="Known: auto, global, sharded"):
            prepare_data_loader(DataLoader(Numbers(4)), sharding=word)
        loader = DataLoader(Stream(4))
        loader.dataset.accel_sharding = "shardet"
        with pytest.raises(UnknownNameError, match="Did you mean 'sharded'"):
            prepare_data_loader(loader)

    @pytest.mark.world(2)
    @pytest.mark.parametrize("wrong", [{"seed": "rank"}, {"shuffle": "rank"}, {"length": "rank"}])
    def test_samplers_that_do_not_belong_together(self, pool, world, wrong):
        def prepare():
            group = gloo()
            own = {key: group.rank for key in wrong if key != "length"}
            if "shuffle" in own:
                own["shuffle"] = bool(own["shuffle"])
            loader = distributed(group.rank, 2, 24 + 2 * group.rank * ("length" in wrong), **own)
            try:
                prepare_data_loader(loader, collectives=group)
            except DataError as error:
                return str(error)
            return None

        for text in pool.run_in_group(world, prepare):
            assert "on ranks 0 to 1" in text


class TestSamplersAreKept:
    """Never swapped: only torch's own plain random sampler is given our seed."""

    def kept(self, loader, rank=0, **kwargs):
        return prepare_data_loader(loader, num_processes=2, process_index=rank, **kwargs)

    def test_weighted(self):
        sampler = WeightedRandomSampler([0.0] * 10 + [1.0] * 10, 40)
        prepared = self.kept(DataLoader(Numbers(20), batch_size=4, sampler=sampler), data_seed=1)
        assert prepared.get_sampler() is sampler
        assert min(flat(prepared)) >= 10

    def test_bucketed(self):
        class Buckets(Sampler):
            batch_size = 2

            def __len__(self):
                return 6

            def __iter__(self):
                return iter([[10, 11], [0, 1], [4, 5], [2, 3], [8, 9], [6, 7]])

        buckets = Buckets()
        prepared = [self.kept(DataLoader(Numbers(12), batch_sampler=buckets), rank) for rank in (0, 1)]
        assert [lists(loader) for loader in prepared] == [
            [[10, 11], [4, 5], [8, 9]],
            [[0, 1], [2, 3], [6, 7]],
        ]
        assert prepared[0].batch_sampler.batch_sampler is buckets

    def test_dynamic_sizes_are_refused_with_the_reason_or_kept(self):
        batches = [[0, 1, 2], [3], [4, 5], [6]]
        loader = DataLoader(Numbers(7), batch_sampler=batches)
        with pytest.raises(PrepareError, match="has no batch_size, so its last round cannot be completed"):
            self.kept(loader)
        ranks = [lists(self.kept(loader, rank, even_batches=False)) for rank in (0, 1)]
        assert ranks == [[[0, 1, 2], [4, 5]], [[3], [6]]]

    def test_a_subclass_of_the_random_sampler(self):
        class Mine(RandomSampler):
            def __iter__(self):
                return iter(range(len(self.data_source) - 1, -1, -1))

        mine = Mine(range(8))
        prepared = self.kept(DataLoader(Numbers(8), batch_size=2, sampler=mine), data_seed=0)
        assert prepared.get_sampler() is mine
        assert lists(prepared) == [[7, 6], [3, 2]]

    def test_the_plain_one_gets_our_seed(self):
        prepared = self.kept(DataLoader(Numbers(8), batch_size=2, shuffle=True), data_seed=0)
        assert type(prepared.get_sampler()) is SeedableRandomSampler


# -- Hugging Face datasets -------------------------------------------------------------------------

COUNT = 96


def numbers(loader):
    return [value for batch in loader for value in batch["number"].tolist()]


def hf_data():
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"number": list(range(COUNT)), "text": [f"t{n}" for n in range(COUNT)]})


def generated(shards):
    for shard in shards:
        for number in range(12):
            yield {"number": 12 * shard + number, "text": "equal"}


def hf_read(build, epochs=1, **kwargs):
    """Read on this rank; return the kind of the prepared data set and the samples of each epoch."""
    group = gloo()
    try:
        loader = DataLoader(build(group.rank, group.world_size), batch_size=4, **kwargs.pop("loader", {}))
        loader = prepare_data_loader(loader, collectives=group, audit="epoch", **kwargs)
        found = type(loader.dataset).__name__, [numbers(loader) for _ in range(epochs)]
    except DataError as error:
        found = type(error).__name__, str(error)
    group.barrier()
    return found


def node(data, rank, world):
    from datasets.distributed import split_dataset_by_node

    return split_dataset_by_node(data, rank, world)


PARTS = {
    "map-style, shard": lambda rank, world: hf_data().shard(world, rank),
    "map-style, strided": lambda rank, world: hf_data().shard(world, rank, contiguous=False),
    "map-style, shuffled, shard": lambda rank, world: hf_data().shuffle(seed=1).shard(world, rank),
    "map-style, node": lambda rank, world: node(hf_data(), rank, world),
    "stream, node": lambda rank, world: node(hf_data().to_iterable_dataset(num_shards=8), rank, world),
    "stream, node, examples": lambda rank, world: node(
        hf_data().to_iterable_dataset(num_shards=3), rank, world
    ),
    "stream, shard": lambda rank, world: hf_data().to_iterable_dataset(num_shards=8).shard(world, rank),
}


@pytest.mark.world(2, 4)
@pytest.mark.parametrize("name", PARTS)
def test_parts_of_datasets_are_recognised(pool, world, name):
    ranks = pool.run_in_group(world, lambda: hf_read(PARTS[name]))
    assert {kind for kind, _ in ranks} <= {"Dataset", "IterableDataset"}, ranks
    assert sorted(chain.from_iterable(epochs[0] for _, epochs in ranks)) == list(range(COUNT))
    for kind, text in pool.run_in_group(world, lambda: hf_read(PARTS[name], sharding="global")):
        assert kind == "AlreadyShardedError"
        assert f"1/{world} of the data" in text


@pytest.mark.world(2, 4)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_stream_of_datasets_is_dealt_out_by_files(pool, world, workers):
    def plain(rank, world):
        datasets = pytest.importorskip("datasets")
        return datasets.IterableDataset.from_generator(generated, gen_kwargs={"shards": list(range(8))})

    ranks = pool.run_in_group(world, lambda: hf_read(plain, 2, loader={"num_workers": workers}))
    for epoch in (0, 1):
        parts = [epochs[epoch] for _, epochs in ranks]
        assert sorted(chain.from_iterable(parts)) == list(range(COUNT))
        files = [{number // 12 for number in part} for part in parts]
        assert sum(map(len, files)) == 8, "a file was read by two ranks"
    assert {kind for kind, _ in ranks} == {"IterableDataset"}


@pytest.mark.world(2, 4)
@pytest.mark.parametrize("workers", [0, 2])
def test_one_whose_files_cannot_be_dealt_out_is_cut(pool, world, workers):
    def plain(rank, world):
        return hf_data().to_iterable_dataset(num_shards=3)

    ranks = pool.run_in_group(world, lambda: hf_read(plain, loader={"num_workers": workers}))
    assert sorted(chain.from_iterable(epochs[0] for _, epochs in ranks)) == list(range(COUNT))
    assert {kind for kind, _ in ranks} == {"IterableDatasetShard"}


@pytest.mark.world(2)
def test_shuffled_streams_get_the_epoch_and_must_be_seeded_alike(pool, world):
    def shuffled(rank, world, seed=3):
        return hf_data().to_iterable_dataset(num_shards=8).shuffle(seed=seed, buffer_size=16)

    ranks = pool.run_in_group(world, lambda: hf_read(shuffled, 2))
    for epoch in (0, 1):
        assert sorted(chain.from_iterable(epochs[epoch] for _, epochs in ranks)) == list(range(COUNT))
    assert ranks[0][1][0] != ranks[0][1][1]
    for kind, text in pool.run_in_group(world, lambda: hf_read(lambda r, w: shuffled(r, w, seed=r))):
        assert kind == "DataError"
        assert "shuffled by generators that differ between ranks" in text


@pytest.mark.world(2)
def test_orders_of_datasets_that_differ_are_no_parts(pool, world):
    for kind, text in pool.run_in_group(world, lambda: hf_read(lambda rank, _: hf_data().shuffle(seed=rank))):
        assert kind == "DataError"
        assert "hold all of the data in an order of their own" in text


@pytest.mark.world(4)
def test_parts_that_some_ranks_share_are_refused(pool, world):
    def build(rank, world):
        return hf_data().shard(2, rank // 2)

    for kind, text in pool.run_in_group(world, lambda: hf_read(build)):
        assert kind == "DataError"
        assert "hold the same part of the data" in text


def test_a_stream_split_for_other_ranks():
    stream = node(hf_data().to_iterable_dataset(num_shards=4), 0, 1)
    with pytest.raises(PrepareError, match=r"split_dataset_by_node of datasets was made for rank 0 of 1"):
        prepare_data_loader(DataLoader(stream), num_processes=2, process_index=0)
