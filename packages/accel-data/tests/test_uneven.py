"""Ranks that run out of data at different steps: nobody waits for ever, and what was asked for happens."""

import logging

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from accel_core.errors import DataError, PrepareError, UnevenDataError, UnknownNameError
from accel_core.window import GradientWindow
from accel_data import prepare_data_loader, skip_first_batches


class Gloo:
    """The least that loaders ask of a group of ranks; counts votes."""

    def __init__(self):
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.side = dist.new_group(backend="gloo")
        self.votes = 0

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
        self.votes += 1
        out = [torch.zeros((), dtype=torch.int64) for _ in range(self.world_size)]
        work = dist.all_gather(out, torch.tensor(ballot), group=self.side, async_op=True)

        def result():
            work.wait()
            return [int(item) for item in out]

        return result


class Own(IterableDataset):
    """``counts[rank]`` samples of this rank's own: ``100 * rank + epoch * 1000 + index``."""

    def __init__(self, counts, broken=None):
        self.counts, self.broken, self.epoch, self.epochs = counts, broken, 0, []

    def set_epoch(self, epoch):
        self.epoch = epoch
        self.epochs.append(epoch)

    def __iter__(self):
        rank = dist.get_rank()
        for index in range(self.counts[rank]):
            if self.broken == (rank, self.epoch, index):
                raise LookupError(f"shard {index} is missing")
            yield torch.tensor(1000 * self.epoch + 100 * rank + index)


class Ragged(IterableDataset):
    """Batches with ``sizes[rank]`` rows, filled with their number."""

    def __init__(self, sizes):
        self.sizes = sizes

    def __iter__(self):
        for number, size in enumerate(self.sizes[dist.get_rank()]):
            yield torch.full((size,), number)


class OwnMap(Dataset):
    """The same, map-style."""

    def __init__(self, counts):
        self.counts = counts

    def __len__(self):
        return self.counts[dist.get_rank()]

    def __getitem__(self, index):
        return torch.tensor(100 * dist.get_rank() + index)


class Numbers(Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.tensor(index)


class Counted(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(map(torch.tensor, range(self.count)))


def walk(data, *, repeat=1, size=2, group=None, **kwargs):
    """Prepare, iterate, and tell what the loop body saw: batch, mask, end, valid, world_batch."""
    window = GradientWindow()
    loader = DataLoader(data, batch_size=size, **kwargs.pop("loader", {}))
    loader = prepare_data_loader(loader, collectives=group or Gloo(), window=window, audit="off", **kwargs)
    seen = []
    for _ in range(repeat):
        for batch in loader:
            cursor = window.active
            mask = loader.valid_mask.tolist()
            seen.append((batch.tolist(), mask, cursor.end, cursor.valid, cursor.world_batch))
            # What a user does to a batch must not come back in the batches that stand in for missing ones.
            batch.fill_(-1)
    assert window.active is None
    return seen


def own(rank, count, epoch=0):
    return [1000 * epoch + 100 * rank + index for index in range(count)]


def real(seen):
    return [value for batch, mask, *_ in seen for value, ok in zip(batch, mask, strict=True) if ok]


COUNTS = (
    [5, 8],
    [0, 3],
    [7, 7],
    [1, 0],
    [0, 0],
    [2, 9],
    [31, 12],
    [4, 1, 8, 3],
    [0, 6, 0, 1],
    [40, 17, 8, 24],
)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("style", [Own, OwnMap])
def test_pad_masked_is_the_default_for_ranks_with_data_of_their_own(pool, counts, style):
    ranks = pool.run_in_group(len(counts), lambda: walk(style(counts), repeat=2, sharding="sharded"))
    steps = max(-(-count // 2) for count in counts)
    for rank, seen in enumerate(ranks):
        assert len(seen) == 2 * steps
        for epoch in range(2):
            part = seen[epoch * steps : (epoch + 1) * steps]
            assert real(part) == own(rank, counts[rank], epoch if style is Own else 0)
            assert [item[2] for item in part] == [False] * (steps - 1) + [True] * bool(steps)
    for step in zip(*ranks, strict=True):
        batches = [batch for batch, *_ in step]
        masks = [ok for _, mask, *_ in step for ok in mask]
        assert {item[4] for item in step} == {sum(map(len, batches))}
        assert {item[3] for item in step} == {None if all(masks) else sum(masks)}


def test_a_rank_that_has_ended_repeats_its_last_batch_or_zeros(pool):
    (_, _, _, last), seen = pool.run_in_group(2, lambda: walk(Own([7, 3]), sharding="sharded"))
    assert last == ([6], [True], True, 1, 2)
    assert [item[0] for item in seen] == [[100, 101], [102], [102], [102]]
    assert [item[1] for item in seen[2:]] == [[False], [False]]
    _, seen = pool.run_in_group(2, lambda: walk(Own([3, 0]), sharding="sharded"))
    assert [item[:2] for item in seen] == [([0, 0], [False, False])] * 2


@pytest.mark.world(2, 4)
@pytest.mark.parametrize("style", [Own, OwnMap])
def test_stop_all_stops_where_the_first_one_ends(pool, world, style):
    counts = [7, 5, 9, 8][:world]

    def run():
        records = []
        handler = logging.Handler()
        handler.emit = lambda record: records.append(record.getMessage())
        logging.getLogger("accel_data.ending").addHandler(handler)
        seen = walk(style(counts), repeat=2, sharding="sharded", uneven="stop_all")
        logging.getLogger("accel_data.ending").removeHandler(handler)
        return seen, records

    ranks = pool.run_in_group(world, run)
    for rank, (seen, _) in enumerate(ranks):
        assert len(seen) == 6
        for epoch in range(2):
            assert real(seen[3 * epoch : 3 * epoch + 3]) == own(
                rank, min(6, counts[rank]), epoch if style is Own else 0
            )
        assert [item[2] for item in seen] == [False, False, True] * 2
    # Rank 1 has 3 batches; the others 4, 5 and 4. How much a stream still holds is not known.
    words = {0: 1, 2: 2, 3: 1}
    left = ", ".join(
        f"rank {rank}: {number if style is OwnMap else 'at least 1'}"
        for rank, number in words.items()
        if rank < world
    )
    said = (
        "The data of rank 1 ended before batch 3, and all ranks stopped (uneven='stop_all'). Batches not"
        f" read: {left}."
    )
    assert ranks[0][1] == [said, said]
    assert ranks[1][1] == []


def test_padding_is_said_once_an_epoch(pool):
    def run():
        records = []
        handler = logging.Handler()
        handler.emit = lambda record: records.append(record.getMessage())
        logging.getLogger("accel_data.ending").addHandler(handler)
        walk(Own([5, 1, 9, 0]), sharding="sharded")
        walk(Own([4, 4, 4, 4]), sharding="sharded")
        logging.getLogger("accel_data.ending").removeHandler(handler)
        return records

    first, *others = pool.run_in_group(4, run)
    assert others == [[], [], []]
    assert len(first) == 1
    assert "5 steps in all" in first[0]
    assert "rank 0: 2, rank 1: 4, rank 3: 5" in first[0]
    assert "valid_mask" in first[0]


@pytest.mark.world(2, 4)
def test_cycle_begins_again_with_the_next_epoch(pool, world):
    counts = [9, 3, 5, 1][:world]
    ranks = pool.run_in_group(world, lambda: walk(Own(counts), sharding="sharded", uneven="cycle", repeat=2))
    for rank, seen in enumerate(ranks):
        assert len(seen) == 10
        for epoch in range(2):
            part = seen[5 * epoch : 5 * epoch + 5]
            expected = []
            turn = epoch
            while len(expected) < 5:
                values = own(rank, counts[rank], turn)
                expected += [values[at : at + 2] for at in range(0, len(values), 2)]
                turn += 1
            assert [item[0] for item in part] == expected[:5]
            # What is read again is data, for training; for metrics it counts once.
            assert all(all(item[1]) for item in part)
    first = [step[0][3] for step in zip(*ranks, strict=True)][:5]
    reals = [sum(min(2, max(0, count - 2 * at)) for count in counts) for at in range(5)]
    sizes = [sum(len(item[0]) for item in step) for step in zip(*ranks, strict=True)][:5]
    assert first == [None if a == b else a for a, b in zip(reals, sizes, strict=True)]


def test_cycle_without_any_data_is_an_error_on_every_rank(pool):
    def run():
        with pytest.raises(UnevenDataError, match="rank 1 has no data at all") as caught:
            walk(Own([3, 0]), sharding="sharded", uneven="cycle")
        return caught.value.ended

    assert pool.run_in_group(2, run) == [(1,), (1,)]


@pytest.mark.parametrize(
    ("broken", "uneven"),
    [((1, 0, 2), "pad_masked"), ((1, 1, 0), "cycle"), ((1, 1, 2), "cycle"), ((0, 0, 6), "stop_all")],
)
def test_a_rank_that_fails_to_read_is_an_error_on_every_rank(pool, broken, uneven):
    def run():
        try:
            walk(Own([9, 3] if uneven != "stop_all" else [9, 9], broken), sharding="sharded", uneven=uneven)
        except (LookupError, DataError) as error:
            return type(error), str(error)

    results = pool.run_in_group(2, run)
    assert results[broken[0]] == (LookupError, f"shard {broken[2]} is missing")
    other, text = results[1 - broken[0]]
    assert other is DataError
    assert f"reading the data failed on rank {broken[0]}" in text


def test_structure_that_cannot_be_sent_is_an_error_on_every_rank(pool):
    def run():
        loader = {"collate_fn": lambda items: {"x": torch.stack(items), "f": lambda: 0}}
        with pytest.raises(DataError, match="cannot be given a batch like that of rank 0"):
            walk(Own([3, 0]), sharding="sharded", loader=loader)

    pool.run_in_group(2, run)


def test_streams_without_even_batches_raise_and_name_the_policies(pool):
    def run(**kwargs):
        seen = []
        loader = prepare_data_loader(
            DataLoader(Counted(9), batch_size=2), collectives=Gloo(), even_batches=False, **kwargs
        )
        try:
            for batch in loader:
                seen.append(batch.tolist())
        except UnevenDataError as error:
            return seen, error.ended, error.fix
        return seen

    for rank, (seen, ended, fix) in enumerate(pool.run_in_group(2, run)):
        assert seen == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]][rank]
        assert ended == (1,)
        for name in ("stop_all", "pad_masked", "cycle"):
            assert name in fix
    alone = pool.run_in_group(2, lambda: run(uneven="independent"))
    assert alone == [[[0, 1], [4, 5], [8]], [[2, 3], [6, 7]]]


@pytest.mark.parametrize("kind", [Numbers, Counted])
def test_policies_for_data_that_is_divided_here(pool, kind):
    run = lambda uneven: walk(kind(9), even_batches=False, uneven=uneven)  # noqa: E731
    zero, one = pool.run_in_group(2, run, "stop_all")
    assert (real(zero), real(one)) == ([0, 1, 4, 5], [2, 3, 6, 7])
    zero, one = pool.run_in_group(2, run, "pad_masked")
    assert (real(zero), real(one)) == ([0, 1, 4, 5, 8], [2, 3, 6, 7])
    assert zero[-1] == ([8], [True], True, 1, 3)
    assert one[-1] == ([6, 7], [False, False], True, 1, 3)
    zero, one = pool.run_in_group(2, run, "cycle")
    assert [item[0] for item in one] == [[2, 3], [6, 7], [2, 3]]
    assert one[-1][1:] == ([True, True], True, 1, 3)
    # Enough for all ranks, though not equally much.
    for uneven in (None, "pad_masked"):
        zero, one = pool.run_in_group(2, lambda u=uneven: walk(kind(7), even_batches=False, uneven=u))
        assert [item[0] for item in zero] == [[0, 1], [4, 5]]
        assert [item[0] for item in one] == [[2, 3], [6]]


def test_shuffled_cycle_reads_the_next_order(pool):
    def run():
        loader = {"shuffle": True}
        once = walk(Numbers(9), even_batches=False, uneven="cycle", loader=loader, data_seed=3)
        twice = walk(Numbers(9), even_batches=False, uneven="stop_all", loader=loader, data_seed=3, repeat=2)
        return once, twice

    _, (once, twice) = pool.run_in_group(2, run)
    # Its batch that is read again is the first one of its next epoch.
    assert once[2][0] == twice[2][0]
    assert once[2][0] != twice[0][0]


def test_map_style_without_even_batches_stays_as_documented(pool):
    """Ranks get what there is, without a word between them, and without a vote."""

    def run():
        group = Gloo()
        window = GradientWindow()
        loader = prepare_data_loader(
            DataLoader(Numbers(9), batch_size=2), collectives=group, window=window, even_batches=False
        )
        seen = []
        for batch in loader:
            seen.append((batch.tolist(), window.active.ended, window.active.world_batch, window.active.rows))
        return seen, group.votes

    (zero, votes), (one, others) = pool.run_in_group(2, run)
    assert zero == [([0, 1], (), 4, 2), ([4, 5], (), 4, 2), ([8], (1,), 1, 1)]
    assert one == [([2, 3], (), 4, 2), ([6, 7], (), 4, 2)]
    assert votes == others == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_skipped_batches(pool, workers):
    def run():
        loader = {"num_workers": workers}
        window = GradientWindow()
        made = prepare_data_loader(
            DataLoader(OwnMap([9, 4]), batch_size=2, **loader),
            collectives=Gloo(),
            window=window,
            sharding="sharded",
            audit="off",
        )
        rest = skip_first_batches(made, 1)
        first = [(batch.tolist(), rest.valid_mask.tolist()) for batch in rest]
        return first, [(batch.tolist(), made.valid_mask.tolist()) for batch in made]

    (zero, whole), (one, other) = pool.run_in_group(2, run)
    assert (real(zero), real(one)) == (own(0, 9)[2:], own(1, 4)[2:])
    assert (real(whole), real(other)) == (own(0, 9), own(1, 4))
    assert len(zero) == len(one) == 4
    assert len(whole) == len(other) == 5


@pytest.mark.world(2, 4)
@pytest.mark.parametrize("count", [1, 5, 8, 13])
def test_a_distributed_sampler_is_counted_without_its_repeats_and_without_votes(pool, world, count):
    def run():
        group = Gloo()
        data = Numbers(count)
        sampler = DistributedSampler(data, shuffle=False)
        seen = walk(data, group=group, loader={"sampler": sampler}, sharding="sharded")
        return seen, group.votes

    ranks = pool.run_in_group(world, run)
    assert sorted(value for seen, _ in ranks for value in real(seen)) == list(range(count))
    last = [seen[-1] for seen, _ in ranks]
    extra = -count % world
    assert all(item[3] == (item[4] - extra if extra else None) for item in last)
    assert all(item[4] == world * len(item[0]) for item in last)
    # One for the lengths, none for each of the steps.
    assert {votes for _, votes in ranks} == {1}


@pytest.mark.world(2)
@pytest.mark.parametrize("split", [False, True])
def test_policies_of_dispatched_loaders(pool, world, split):
    def run(uneven):
        size = 4 if split else 2
        return walk(
            Numbers(9),
            size=size,
            dispatch_batches=True,
            split_batches=split,
            even_batches=False,
            uneven=uneven,
        )

    zero, one = pool.run_in_group(world, run, "stop_all")
    assert (real(zero), real(one)) == ([0, 1, 4, 5], [2, 3, 6, 7])
    assert zero[-1][2] is one[-1][2] is True
    zero, one = pool.run_in_group(world, run, "pad_masked")
    assert (real(zero), real(one)) == ([0, 1, 4, 5, 8], [2, 3, 6, 7])
    assert one[-1] == ([8], [False], True, 1, 2)
    zero, one = pool.run_in_group(world, run, None)
    assert [item[2] for item in zero] == [False, False, True]
    assert [item[2] for item in one] == [False, True]


def test_what_cannot_be_asked_for(pool):
    def run():
        loader = DataLoader(Numbers(9), batch_size=2)
        with pytest.raises(PrepareError, match="one reader"):
            prepare_data_loader(
                loader, collectives=Gloo(), dispatch_batches=True, even_batches=False, uneven="cycle"
            )
        with pytest.raises(PrepareError, match="cannot be saved"):
            prepare_data_loader(
                loader,
                collectives=Gloo(),
                even_batches=False,
                uneven="cycle",
                use_stateful_dataloader=True,
            )

    pool.run_in_group(2, run)
    with pytest.raises(UnknownNameError, match="Did you mean 'pad_masked'"):
        prepare_data_loader(DataLoader(Numbers(3)), uneven="pad_mask")


def test_positions_are_saved_where_ranks_have_ended(pool):
    """A rank that had ended when the state was saved goes on as one that has ended."""

    def run():
        def make():
            return prepare_data_loader(
                DataLoader(OwnMap([9, 3]), batch_size=2),
                collectives=Gloo(),
                window=GradientWindow(),
                sharding="sharded",
                use_stateful_dataloader=True,
                audit="off",
            )

        loader, seen, states = make(), [], []
        for batch in loader:
            seen.append((batch.tolist(), loader.valid_mask.tolist()))
            states.append(loader.state_dict())
        again = []
        for state in states[:4]:
            fresh = make()
            fresh.load_state_dict(state)
            again.append([(batch.tolist(), fresh.valid_mask.tolist()) for batch in fresh])
        return seen, again

    for rank, (seen, again) in enumerate(pool.run_in_group(2, run)):
        assert real(seen) == own(rank, [9, 3][rank])
        for done, rest in enumerate(again, 1):
            assert len(rest) == 5 - done
            assert real(rest) == real(seen[done:])


def test_the_mask_is_there_in_the_loop_only():
    loader = prepare_data_loader(DataLoader(Numbers(5), batch_size=2))
    with pytest.raises(DataError, match="no batch in hand"):
        _ = loader.valid_mask
    assert [loader.valid_mask.tolist() for _ in loader] == [[True, True], [True, True], [True]]
    with pytest.raises(DataError, match="no batch in hand"):
        _ = loader.valid_mask


def test_votes_are_cast_while_the_batches_before_are_computed(pool):
    def run():
        group, window = Gloo(), GradientWindow()
        loader = prepare_data_loader(
            DataLoader(Counted(16), batch_size=2), collectives=group, window=window, audit="off"
        )
        return [group.votes for _ in loader]

    # With the first batch in hand, batches 0 and 1 and then 2 and 3 have been announced; the end is the last.
    assert pool.run_in_group(2, run) == [[2, 2, 3, 3]] * 2


def test_one_vote_covers_the_batches_that_are_alike(pool):
    def run(sizes):
        group, window = Gloo(), GradientWindow()
        loader = prepare_data_loader(
            DataLoader(Ragged(sizes), batch_size=None),
            collectives=group,
            window=window,
            sharding="sharded",
            audit="off",
        )
        seen = [(batch.tolist(), window.active.world_batch) for batch in loader]
        return seen, group.votes

    alike = [[3] * 40, [5] * 40]
    ragged = [[3] * 20 + [1, 2, 3, 4], [5] * 24]
    for sizes, most in ((alike, 15), (ragged, 15)):
        for rank, (seen, votes) in enumerate(pool.run_in_group(2, run, sizes)):
            assert [len(batch) for batch, _ in seen] == sizes[rank]
            assert [batch[0] for batch, _ in seen] == list(range(len(sizes[rank])))
            assert [world for _, world in seen] == [sum(step) for step in zip(*sizes, strict=True)]
            assert votes <= most
    # Where the sizes change with each batch there is one vote for each, and one for the end.
    (_, votes), _ = pool.run_in_group(2, run, [[1, 2] * 6, [3] * 12])
    assert votes == 13


@pytest.mark.world(2)
@pytest.mark.parametrize("uneven", ["pad_masked", "stop_all", "cycle"])
def test_a_failure_among_batches_read_ahead_comes_in_its_turn(pool, world, uneven):
    def run():
        seen = []
        loader = prepare_data_loader(
            DataLoader(Own([40, 40], broken=(1, 0, 26)), batch_size=2),
            collectives=Gloo(),
            sharding="sharded",
            uneven=uneven,
            audit="off",
        )
        try:
            for batch in loader:
                seen.append(batch.tolist())
        except (LookupError, DataError) as error:
            return seen, type(error)

    ranks = pool.run_in_group(world, run)
    assert [len(seen) for seen, _ in ranks] == [13, 13]
    assert [kind for _, kind in ranks] == [DataError, LookupError]


def test_streams_of_datasets_begin_again_with_their_next_order(pool):
    pytest.importorskip("datasets")

    def run():
        import datasets

        rank = dist.get_rank()
        datasets.disable_progress_bars()
        rows = datasets.Dataset.from_dict({"x": own(rank, [8, 3][rank])})
        stream = rows.to_iterable_dataset().shuffle(seed=5, buffer_size=100).with_format("torch")
        orders = []
        for epoch in range(3):
            stream.set_epoch(epoch)
            orders.append([int(item["x"]) for item in stream])
        stream.set_epoch(0)
        loader = prepare_data_loader(
            DataLoader(stream, batch_size=2),
            collectives=Gloo(),
            window=GradientWindow(),
            sharding="sharded",
            uneven="cycle",
        )
        return orders, [[batch["x"].tolist() for batch in loader] for _ in range(2)]

    _, (orders, epochs) = pool.run_in_group(2, run)
    assert orders[0] != orders[1] != orders[2]
    for epoch, seen in enumerate(epochs):
        first, again = orders[epoch], orders[epoch + 1]
        assert seen == [first[:2], first[2:], again[:2], again[2:]]
