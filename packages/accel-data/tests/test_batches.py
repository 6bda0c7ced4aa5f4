"""Sharded batch samplers are index arithmetic: every rank is simulated here, no process is started."""

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, RandomSampler, Sampler, SequentialSampler

from accel_core.errors import DataError, PrepareError
from accel_data import BatchSamplerShard, SeedableRandomSampler

WORLDS = st.sampled_from([1, 2, 3, 4, 8])


class Walked(Sampler):
    """A sampler that cannot be indexed."""

    def __init__(self, indices):
        self.indices = indices

    def __iter__(self):
        yield from self.indices

    def __len__(self):
        return len(self.indices)


class Custom:
    """A batch sampler of the user's own."""

    def __init__(self, batches, batch_size=None):
        self.batches = batches
        if batch_size is not None:
            self.batch_size = batch_size

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def shards(batch_sampler, world, **kwargs):
    return [BatchSamplerShard(batch_sampler, world, rank, **kwargs) for rank in range(world)]


def gathered(parts):
    """The batches of all ranks, round by round, in rank order."""
    longest = max(map(len, parts), default=0)
    return [[part[k] if k < len(part) else [] for part in parts] for k in range(longest)]


@pytest.mark.parametrize(
    "make", [SequentialSampler, lambda data: Walked(list(data))], ids=["sliced", "walked"]
)
@given(
    count=st.integers(0, 101),
    size=st.integers(1, 9),
    world=WORLDS,
    split=st.booleans(),
    even=st.booleans(),
    drop=st.booleans(),
)
def test_the_union_over_ranks_is_the_data(make, count, size, world, split, even, drop):
    batch = size * world if split else size
    whole = size * world
    samplers = shards(
        BatchSampler(make(range(count)), batch, drop), world, split_batches=split, even_batches=even
    )
    parts = [list(sampler) for sampler in samplers]
    rounds = gathered(parts)
    flat = [index for batches in rounds for part in batches for index in part]

    assert [len(sampler) for sampler in samplers] == [len(part) for part in parts]
    kept = count // whole * whole if drop else count
    assert flat[:kept] == list(range(kept))
    if drop or not even or world == 1:
        assert len(flat) == kept
        assert all(sampler.tail.valid is None for sampler in samplers)
        return
    assert {len(part) for part in parts} == {-(-count // whole)}
    assert all(len(piece) == size for part in parts for piece in part)
    # Padding repeats the data from its first sample on.
    assert flat[kept:] == [index % count for index in range(len(flat) - kept)]
    valid = count % whole or None
    assert all(sampler.tail.valid == valid for sampler in samplers if len(sampler))


@given(count=st.integers(0, 40), size=st.integers(1, 7), drop=st.booleans())
def test_one_process_is_plain_torch(count, size, drop):
    plain = BatchSampler(SequentialSampler(range(count)), size, drop)
    assert list(BatchSamplerShard(plain)) == list(plain)
    walked = BatchSampler(Walked(list(range(count))), size, drop)
    assert list(BatchSamplerShard(walked, split_batches=True)) == list(plain)


@given(count=st.integers(1, 70), world=WORLDS, epoch=st.integers(0, 3), replacement=st.booleans())
def test_the_shuffled_order_does_not_depend_on_the_number_of_processes(count, world, epoch, replacement):
    def order(ranks, size):
        sampler = SeedableRandomSampler(range(count), replacement=replacement, data_seed=11)
        sampler.set_epoch(epoch)
        parts = [list(s) for s in shards(BatchSampler(sampler, size, False), ranks, even_batches=False)]
        return [index for batches in gathered(parts) for part in batches for index in part]

    assert order(world, 3) == order(1, 3 * world)
    if not replacement:
        assert sorted(order(world, 3)) == list(range(count))


@given(
    count=st.integers(1, 60),
    size=st.integers(1, 5),
    world=WORLDS,
    start=st.integers(0, 12),
    split=st.booleans(),
    even=st.booleans(),
    walked=st.booleans(),
)
def test_starting_late_gives_the_rest_of_the_batches(count, size, world, start, split, even, walked):
    sampler = Walked(list(range(count))) if walked else SequentialSampler(range(count))
    batches = BatchSampler(sampler, size * world if split else size, False)
    for shard in shards(batches, world, split_batches=split, even_batches=even):
        whole = list(shard)
        valid = shard.tail.valid
        shard.start = start
        assert list(shard) == whole[start:]
        assert shard.tail.valid == valid
        assert list(shard) == whole, "only one iteration starts late"


@given(count=st.integers(1, 80), extra=st.integers(0, 90), replacement=st.booleans(), world=WORLDS)
def test_a_user_generator_gives_the_draws_of_torch_epoch_after_epoch(count, extra, replacement, world):
    def sampler():
        generator = torch.Generator()
        generator.manual_seed(3)
        return RandomSampler(range(count), replacement, count + extra, generator=generator)

    plain = sampler()
    ours = [sampler() for _ in range(world)]
    for _ in range(3):
        expected = list(plain)
        parts = [
            list(BatchSamplerShard(BatchSampler(s, 4, False), world, rank, even_batches=False))
            for rank, s in enumerate(ours)
        ]
        flat = [index for batches in gathered(parts) for part in batches for index in part]
        assert flat == expected


def test_a_random_sampler_without_generator_draws_its_seed_where_torch_does():
    sampler = RandomSampler(range(50))
    torch.manual_seed(5)
    expected = list(sampler)
    torch.manual_seed(5)
    assert list(chain.from_iterable(BatchSamplerShard(BatchSampler(sampler, 4, False)))) == expected


def test_a_list_as_sampler_is_sliced():
    order = ["d", "a", "c", "b", "e"]
    parts = [list(s) for s in shards(BatchSampler(order, 2, False), 2)]
    assert parts == [[["d", "a"], ["e", "d"]], [["c", "b"], ["a", "c"]]]


def test_a_rank_touches_only_its_own_indices():
    class Counting(list):
        read = 0

        def __getitem__(self, item):
            found = super().__getitem__(item)
            Counting.read += len(found) if isinstance(item, slice) else 1
            return found

        def __iter__(self):
            raise AssertionError("walked")

    order = Counting(range(32 * 512 * 3))
    shard = BatchSamplerShard(BatchSampler(order, 32, False), 512, 300)
    batches = list(shard)
    assert batches[1][0] == (512 + 300) * 32
    assert Counting.read == 3 * 32


class TestCustomBatchSamplers:
    def test_short_batches_in_the_middle_stay_and_padding_comes_last(self):
        custom = Custom([[0, 1], [2, 3, 4], [5], [6, 7, 8], [9]], batch_size=3)
        samplers = shards(custom, 2)
        assert [list(s) for s in samplers] == [[[0, 1], [5], [9, 0, 1]], [[2, 3, 4], [6, 7, 8], [2, 3, 4]]]
        assert [s.tail.valid for s in samplers] == [1, 1]

    def test_without_batch_size_even_batches_are_refused(self):
        with pytest.raises(PrepareError, match="has no batch_size.*\n.*where.*\n.*even_batches=False"):
            BatchSamplerShard(Custom([[0], [1]]), 2, 0)

    def test_without_batch_size_ranks_may_end_unevenly(self):
        parts = [list(s) for s in shards(Custom([[0], [1, 2], [3]]), 2, even_batches=False)]
        assert parts == [[[0], [3]], [[1, 2]]]

    def test_splitting_a_middle_batch_that_does_not_divide_is_an_error(self):
        shard = BatchSamplerShard(Custom([[0, 1], [2, 3, 4], [5, 6]]), 2, 0, split_batches=True)
        with pytest.raises(DataError, match="batch 1 has 3 samples and cannot be split into 2 equal parts"):
            list(shard)


def test_attributes_are_those_of_the_batch_sampler():
    batches = BatchSampler(SequentialSampler(range(10)), 4, True)
    shard = BatchSamplerShard(batches, 2, 1, split_batches=True)
    assert (shard.batch_size, shard.drop_last, shard.total_length) == (4, True, 2)
    assert (shard.local_size, shard.round_size) == (2, 4)
    assert shard.sampler is batches.sampler


@pytest.mark.parametrize(("world", "rank"), [(2, 2), (2, -1), (0, 0)])
def test_a_rank_outside_of_the_world_is_refused(world, rank):
    with pytest.raises(PrepareError, match="is not one of"):
        BatchSamplerShard(BatchSampler(range(4), 2, False), world, rank)


def test_a_batch_size_that_does_not_divide_is_refused():
    with pytest.raises(PrepareError, match="batch_size=5 cannot be split into 2 equal parts"):
        BatchSamplerShard(BatchSampler(range(10), 5, False), 2, 0, split_batches=True)
