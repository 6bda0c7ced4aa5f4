"""Loaders on real processes that talk over gloo: dispatch, votes on the end of streams, generators."""

import time
from itertools import chain
from urllib.parse import DefragResult as Pair  # any named tuple that all ranks can import

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from accel_core.errors import DataError, PrepareError, UnevenDataError
from accel_core.window import GradientWindow
from accel_data import prepare_data_loader, skip_first_batches

# Any named tuple that both sides can import.


class Gloo:
    """The least that loaders ask of a group of ranks."""

    def __init__(self):
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.side = dist.new_group(backend="gloo")

    def broadcast(self, tensor, src=0):
        dist.broadcast(tensor, src)
        return tensor

    def broadcast_object(self, value, src=0):
        box = [value]
        dist.broadcast_object_list(box, src)
        return box[0]

    def all_gather_object(self, value):
        found = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def vote(self, ballot):
        out = [torch.zeros((), dtype=torch.int64) for _ in range(self.world_size)]
        work = dist.all_gather(out, torch.tensor(ballot), group=self.side, async_op=True)

        def result():
            work.wait()
            return [int(item) for item in out]

        return result


class Numbers(Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.tensor(index)


class Stream(IterableDataset):
    """``counts[rank]`` numbers, or the same number on every rank; ``broken`` raises there."""

    def __init__(self, counts, broken=None):
        self.counts, self.broken = counts, broken

    def __iter__(self):
        count = self.counts if isinstance(self.counts, int) else self.counts[dist.get_rank()]
        for index in range(count):
            if self.broken == (dist.get_rank(), index):
                raise LookupError(f"shard {index} is missing")
            yield torch.tensor(index)


def record(data, repeat=1, skip=0, **kwargs):
    """Prepare, iterate, and tell what the loop body saw."""
    settings = {"batch_size": 2} | kwargs.pop("loader", {})
    window = GradientWindow()
    loader = prepare_data_loader(DataLoader(data, **settings), collectives=Gloo(), window=window, **kwargs)
    if skip:
        loader = skip_first_batches(loader, skip)
    seen = []
    for _ in range(repeat):
        for batch in loader:
            cursor = window.active
            seen.append((batch.tolist(), cursor.end, cursor.remaining, cursor.valid, cursor.world_batch))
    assert window.active is None
    return seen


def kept(ranks):
    """The samples that gathering over the ranks and cutting the padding gives."""
    assert len({len(seen) for seen in ranks}) == 1
    return [
        value
        for step in zip(*ranks, strict=True)
        for value in [v for batch, *_ in step for v in batch][: step[0][3]]
    ]


def same_end(ranks):
    return all(len({item[1:] for item in step}) == 1 for step in zip(*ranks, strict=True))


@pytest.mark.world(2, 4)
@pytest.mark.parametrize("workers", [0, 2])
def test_streams_that_end_together(pool, world, workers):
    for count in (0, 1, 11, 16):
        ranks = pool.run_in_group(world, record, Stream(count), 2, 0)
        assert kept(ranks) == 2 * list(range(count))
        assert same_end(ranks)
    loader = {"num_workers": workers}
    ranks = pool.run_in_group(world, lambda: record(Counted(11), loader=loader))
    assert kept(ranks) == list(range(11))
    assert same_end(ranks)


class Counted(IterableDataset):
    """A stream that does not ask for its rank, for worker processes."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(map(torch.tensor, range(self.count)))


@pytest.mark.world(2, 4)
def test_streams_that_end_at_different_steps_raise_on_every_rank(pool, world):
    counts = [world * 8] * (world - 1) + [world * 4]

    def run():
        seen, window = [], GradientWindow()
        loader = DataLoader(Stream(counts), batch_size=2)
        loader = prepare_data_loader(loader, collectives=Gloo(), window=window)
        try:
            for _ in loader:
                seen.append(window.active.end)
        except UnevenDataError as error:
            return seen, error.ended, str(error)
        return None

    for rank, (seen, ended, text) in enumerate(pool.run_in_group(world, run)):
        assert seen == [False, False], "what is followed by an error is not the end of an epoch"
        assert ended == (world - 1,)
        assert f"the data of rank {world - 1} ended before batch 2" in text
        assert f"where: rank {rank}, batch 2" in text
        assert "fix:" in text


@pytest.mark.parametrize("first", [0, 5])
def test_a_rank_that_fails_to_read_is_an_error_on_every_rank(pool, first):
    def run():
        loader = prepare_data_loader(
            DataLoader(Stream(12, broken=(1, first)), batch_size=2), collectives=Gloo()
        )
        try:
            return list(loader)
        except (LookupError, DataError) as error:
            return type(error), str(error)

    (zero, text), (one, own) = pool.run_in_group(2, run)
    assert (zero, one) == (DataError, LookupError)
    assert "reading the data failed on rank 1" in text
    assert own == f"shard {first} is missing"


def test_leaving_a_stream_early_and_starting_again(pool):
    def run():
        loader = prepare_data_loader(DataLoader(Counted(20), batch_size=2), collectives=Gloo())
        for batch in loader:
            assert batch.tolist() == [2 * dist.get_rank(), 2 * dist.get_rank() + 1]
            break
        return [batch.tolist() for batch in loader]

    zero, one = pool.run_in_group(2, run)
    assert [value for step in zip(zero, one, strict=True) for batch in step for value in batch] == list(
        range(20)
    )


@pytest.mark.world(2, 4)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("drop", [False, True])
def test_dispatch(pool, world, split, drop):
    size = 2 * world if split else 2
    for data in (Numbers, Counted):
        for count in (0, 1, 11, 16, 4 * world):

            def run(data=data, count=count):
                loader = {"batch_size": size, "drop_last": drop}
                return record(data(count), 2, loader=loader, dispatch_batches=True, split_batches=split)

            ranks = pool.run_in_group(world, run)
            whole = count // (2 * world) * 2 * world
            assert kept(ranks) == 2 * list(range(whole if drop else count))
            assert same_end(ranks)
            assert all(len(batch) == 2 for seen in ranks for batch, *_ in seen)


def test_dispatch_without_even_batches_ends_where_the_data_ends(pool):
    run = lambda split: record(  # noqa: E731
        Numbers(9),
        loader={"batch_size": 4 if split else 2},
        dispatch_batches=True,
        even_batches=False,
        split_batches=split,
    )
    for split in (False, True):
        zero, one = pool.run_in_group(2, run, split)
        assert [item[0] for item in zero] == [[0, 1], [4, 5], [8]]
        assert [item[0] for item in one] == [[2, 3], [6, 7]]


def test_dispatch_reads_on_rank_0_alone_and_shuffles_as_sharding_does(pool):
    class Guarded(Numbers):
        def __getitem__(self, index):
            assert dist.get_rank() == 0 or not self.guarded
            return super().__getitem__(index)

    def run(dispatch):
        data = Guarded(12)
        data.guarded = dispatch
        torch.manual_seed(dist.get_rank())
        return record(data, 2, loader={"shuffle": True}, dispatch_batches=dispatch)

    dispatched, sharded = pool.run_in_group(2, run, True), pool.run_in_group(2, run, False)
    assert [[item[0] for item in seen] for seen in dispatched] == [
        [item[0] for item in seen] for seen in sharded
    ]
    assert sorted(kept(dispatched)[:12]) == list(range(12))
    assert kept(dispatched)[:12] != kept(dispatched)[12:]


def test_dispatch_keeps_containers_dtypes_and_columns(pool):
    def collate(items):
        values = torch.stack(items)
        names = [f"s{int(v)}" for v in values]
        half = values.to(torch.bfloat16).unsqueeze(1)
        return {
            "pair": Pair(values, names),
            "half": half,
            "flags": values > 2,
            "scale": torch.tensor(0.5),
            "n": 7,
        }

    def run(split):
        loader = DataLoader(Numbers(7), batch_size=4 if split else 2, collate_fn=collate)
        loader = prepare_data_loader(loader, collectives=Gloo(), dispatch_batches=True, split_batches=split)
        seen = []
        for batch in loader:
            pair, half = batch["pair"], batch["half"]
            assert (type(pair), half.dtype, half.shape) == (Pair, torch.bfloat16, (2, 1))
            assert batch["flags"].tolist() == (pair.url > 2).tolist()
            assert (float(batch["scale"]), batch["n"]) == (0.5, 7)
            seen.append((pair.url.tolist(), pair.fragment))
        return seen

    for split in (False, True):
        zero, one = pool.run_in_group(2, run, split)
        assert zero == [([0, 1], ["s0", "s1"]), ([4, 5], ["s4", "s5"])]
        assert one == [([2, 3], ["s2", "s3"]), ([6, 0], ["s6", "s0"])]


def test_dispatch_needs_no_equal_shapes_between_batches(pool):
    class Ragged(IterableDataset):
        def __iter__(self):
            return iter([torch.full((2, width), width) for width in (3, 5, 1, 4)])

    def run():
        loader = DataLoader(Ragged(), batch_size=None)
        return [
            (int(b[0, 0]), tuple(b.shape))
            for b in prepare_data_loader(loader, collectives=Gloo(), dispatch_batches=True)
        ]

    assert pool.run_in_group(2, run) == [[(3, (2, 3)), (1, (2, 1))], [(5, (2, 5)), (4, (2, 4))]]


def test_dispatch_with_a_slice_function(pool):
    def every_other(data, tensor_slice, process_index=None, num_processes=None):
        assert (tensor_slice.stop - tensor_slice.start) * num_processes == len(data)
        return data[process_index::num_processes]

    def run():
        return record(Numbers(8), dispatch_batches=True, slice_fn_for_dispatch=every_other)

    zero, one = pool.run_in_group(2, run)
    assert [item[0] for item in zero] == [[0, 2], [4, 6]]
    assert [item[0] for item in one] == [[1, 3], [5, 7]]


def test_skipping_in_a_dispatched_loader(pool):
    ranks = pool.run_in_group(2, lambda: record(Numbers(11), 2, 2, dispatch_batches=True))
    assert [item[0] for item in ranks[0]] == [[8, 9], [0, 1], [4, 5], [8, 9]]
    assert [item[2:4] for item in ranks[1]] == [(1, 3), (3, None), (2, None), (1, 3)]


@pytest.mark.parametrize("kind", ["read", "text", "split"])
def test_what_goes_wrong_on_rank_0_is_an_error_on_every_rank(pool, kind):
    def run():
        loader = {
            "read": lambda: DataLoader(Stream(12, broken=(0, 5)), batch_size=2),
            "text": lambda: DataLoader(["a", "b", "c", "d"], batch_size=2),
            "split": lambda: DataLoader(Numbers(9), batch_sampler=[[0, 1], [2, 3, 4], [5, 6]]),
        }[kind]()
        loader = prepare_data_loader(
            loader, collectives=Gloo(), dispatch_batches=True, split_batches=kind == "split"
        )
        try:
            return list(loader)
        except (LookupError, DataError) as error:
            return type(error), str(error)

    (zero, own), (one, text) = pool.run_in_group(2, run)
    reason = {
        "read": "shard 5 is missing",
        "text": "holds no tensor",
        "split": "3 samples cannot be split into 2",
    }
    assert zero is (LookupError if kind == "read" else DataError)
    assert one is DataError
    assert reason[kind] in own
    assert "rank 0 failed to read" in text
    assert reason[kind] in text


def test_a_dispatched_batch_size_that_cannot_be_split(pool):
    def run():
        with pytest.raises(PrepareError, match="batch_size=3 cannot be split into 2"):
            prepare_data_loader(
                DataLoader(Numbers(9), batch_size=3),
                collectives=Gloo(),
                dispatch_batches=True,
                split_batches=True,
            )

    pool.run_in_group(2, run)


def test_the_seed_of_a_shuffle_is_rank_0s(pool):
    def run():
        torch.manual_seed(100 + dist.get_rank())
        return record(Numbers(13), 2, loader={"shuffle": True})

    ranks = pool.run_in_group(2, run)
    epochs = kept(ranks)
    assert sorted(epochs[:13]) == sorted(epochs[13:]) == list(range(13))


def test_a_user_generator_follows_rank_0_at_each_iteration(pool):
    def run(given):
        own = torch.Generator().manual_seed(7 + dist.get_rank())
        calls = []

        def synchronize(types, generator):
            calls.append((tuple(types), generator is own))
            state = Gloo().broadcast_object(generator.get_state())
            generator.set_state(state)

        loader = {"shuffle": True, "generator": own}
        return record(Numbers(13), 2, loader=loader, synchronize=synchronize if given else None), calls

    plain = DataLoader(Numbers(13), batch_size=13, shuffle=True, generator=torch.Generator().manual_seed(7))
    expected = [value for _ in range(2) for batch in plain for value in batch.tolist()]
    for given in (True, False):
        results = pool.run_in_group(2, run, given)
        assert kept([seen for seen, _ in results]) == expected
        assert all(calls == [(("generator",), True)] * (2 if given else 0) for _, calls in results)


def test_rng_types_that_nobody_can_synchronise(pool):
    def run():
        loader = prepare_data_loader(DataLoader(Numbers(4)), collectives=Gloo(), rng_types=["cuda"])
        with pytest.raises(PrepareError, match="cannot synchronise random generators of type 'cuda'"):
            iter(loader)
        torch.manual_seed(dist.get_rank())
        iter(prepare_data_loader(DataLoader(Numbers(4)), collectives=Gloo(), rng_types=["torch"]))
        return torch.initial_seed(), torch.rand(1).item()

    (_, zero), (_, one) = pool.run_in_group(2, run)
    assert zero == one


class Own(Sampler):
    """A sampler of the user's: in turn the same on all ranks, or not."""

    def __init__(self, kind):
        self.kind = kind

    def __iter__(self):
        if self.kind == "sharded":
            return iter(range(dist.get_rank(), 12, 2))
        if self.kind == "unseeded":
            return iter(torch.randperm(12).tolist())
        return iter(range(12))

    def __len__(self):
        return 6 if self.kind == "sharded" else 12


@pytest.mark.parametrize("kind", ["sharded", "unseeded", "same"])
def test_ranks_that_walk_different_orders_are_told(pool, kind):
    def run():
        torch.manual_seed(dist.get_rank())
        try:
            return [item[0] for item in record(Numbers(12), loader={"sampler": Own(kind)})]
        except DataError as error:
            return str(error)

    zero, one = pool.run_in_group(2, run)
    if kind == "same":
        assert [value for step in zip(zero, one, strict=True) for b in step for value in b] == list(range(12))
    else:
        assert "rank 1 got other samples from the sampler than rank 0" in zero
        assert "rank 1 got other samples from the sampler than rank 0" in one


def test_ranks_that_shuffle_different_epochs_are_told(pool):
    """set_epoch on one rank only: without a word, ranks would cut their parts out of different orders."""

    def run():
        loader = prepare_data_loader(DataLoader(Numbers(12), batch_size=3, shuffle=True), collectives=Gloo())
        list(loader)
        if dist.get_rank() == 1:
            loader.set_epoch(5)
        with pytest.raises(DataError, match="different epochs, 1, 5 in rank order"):
            list(loader)

    pool.run_in_group(2, run)


def test_loops_left_early_stay_together(pool):
    def run():
        loader = prepare_data_loader(DataLoader(Numbers(12), batch_size=3, shuffle=True), collectives=Gloo())
        first = [next(iter(loader)).tolist() for _ in range(3)]
        return first, [batch.tolist() for batch in loader]

    (zero, whole), (one, rest) = pool.run_in_group(2, run)
    assert len({tuple(batch) for batch in zero}) == 3
    assert not any(set(a) & set(b) for a, b in zip(zero, one, strict=True))
    assert sorted(value for batch in whole + rest for value in batch) == list(range(12))


def test_a_dataset_of_another_length_is_told(pool):
    def run():
        with pytest.raises(DataError, match="the dataset has 9, 10 samples on ranks 0 to 1"):
            record(Numbers(9 + dist.get_rank()))

    pool.run_in_group(2, run)


def test_a_dispatched_batch_that_cannot_be_pickled(pool):
    def run():
        loader = DataLoader(Numbers(4), collate_fn=lambda items: {"x": items[0].view(1), "f": lambda: 0})
        try:
            list(prepare_data_loader(loader, collectives=Gloo(), dispatch_batches=True))
        except Exception as error:
            return type(error).__name__, str(error)

    (zero, _), (one, text) = pool.run_in_group(2, run)
    assert zero != "DataError"
    assert one == "DataError"
    assert "pickle" in text


def test_a_slow_rank_only_delays(pool):
    def run():
        seen = []
        for batch in prepare_data_loader(DataLoader(Counted(24), batch_size=2), collectives=Gloo()):
            time.sleep(0.01 * dist.get_rank())
            seen += batch.tolist()
        return seen

    assert sorted(chain(*pool.run_in_group(4, run))) == list(range(24))
