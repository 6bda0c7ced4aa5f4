"""Going on where a loop was: on as many ranks exactly, on another number in the same global order."""

import copy
import gc
import random
import weakref
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
    get_worker_info,
)

import accel_data.stream
from accel_core.errors import DataError
from accel_core.window import GradientWindow
from accel_data import prepare_data_loader, skip_first_batches
from accel_data.apart import host_states, set_host_states


class Numbers(Dataset):
    def __init__(self, count):
        self.count = count
        self.read = []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.append(index)
        return index


class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        yield from range(self.count)


class SplitStream(Stream):
    """A stream that divides itself among worker processes."""

    def __iter__(self):
        info = get_worker_info()
        return iter(range(self.count) if info is None else range(info.id, self.count, info.num_workers))


class PlacedStream(IterableDataset):
    """A stream that keeps its own place, as torchdata asks for."""

    def __init__(self, count):
        self.count, self.place, self.read = count, 0, 0

    def __iter__(self):
        while self.place < self.count:
            self.place += 1
            self.read += 1
            yield self.place - 1
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class Walked(Sampler):
    """A custom sampler, whose order only walking it tells."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter([index * 7 % self.count if self.count % 7 else index for index in range(self.count)])

    def __len__(self):
        return self.count


def simulated(make, world, **kwargs):
    """The loaders of all ranks, with their windows."""
    made = []
    for rank in range(world):
        window = GradientWindow()
        loader = prepare_data_loader(
            make(), num_processes=world, process_index=rank, window=window, **{"data_seed": 3} | kwargs
        )
        made.append((loader, window))
    return made


def noted(batch, cursor):
    return batch.tolist(), cursor.end, cursor.remaining, cursor.valid, cursor.world_batch, cursor.own


def epoch(loader, window, stop=None):
    """What the body sees of one epoch, and the position in the body of batch number ``stop``."""
    seen, position = [], None
    for number, batch in enumerate(loader, 1):
        seen.append(noted(batch, window.active))
        if number == stop:
            position = loader.position()
    return seen, position


def real(ranks):
    """The samples of all ranks in global order, padding cut off, of steps that all ranks take."""
    steps = zip(*ranks, strict=True)
    return [
        value for step in steps for value in list(chain.from_iterable(item[0] for item in step))[: step[0][3]]
    ]


def plain(value):
    """Tell whether a position holds nothing but plain values and tensors."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, str, torch.Tensor))


SIZES = st.integers(1, 4)


@settings(max_examples=40)
@given(
    count=st.integers(1, 60),
    size=SIZES,
    world=st.sampled_from([1, 2, 3, 4]),
    split=st.booleans(),
    even=st.booleans(),
    drop=st.booleans(),
    kind=st.sampled_from(["shuffle", "plain", "generator", "walked", "batches"]),
    cut=st.integers(1, 12),
)
def test_on_as_many_ranks_everything_is_as_it_would_have_been(
    count, size, world, split, even, drop, kind, cut
):
    size *= world if split else 1

    def make():
        generator = torch.Generator().manual_seed(8)
        if kind == "batches":
            return DataLoader(Numbers(count), batch_sampler=BatchSampler(Walked(count), size, drop))
        more = (
            {"sampler": Walked(count)} if kind == "walked" else {"shuffle": kind in ("shuffle", "generator")}
        )
        if kind == "generator":
            more["generator"] = generator
        return DataLoader(Numbers(count), batch_size=size, drop_last=drop, **more)

    for loader, window in simulated(make, world, split_batches=split, even_batches=even):
        epoch(loader, window)
        whole, position = epoch(loader, window, cut)
        following = [epoch(loader, window)[0] for _ in range(2)]
        if position is None:
            continue
        assert plain(position)
        rank = position["rank"]
        again, window = simulated(make, world, split_batches=split, even_batches=even, data_seed=77)[rank]
        again.resume_at(position)
        assert len(again) == len(loader)
        assert again.iteration == 1
        assert again.position() == position
        assert epoch(again, window)[0] == whole[cut:]
        assert [epoch(again, window)[0] for _ in range(2)] == following


@settings(max_examples=60)
@given(
    count=st.integers(1, 70),
    sizes=st.tuples(SIZES, SIZES, SIZES),
    worlds=st.tuples(*[st.sampled_from([1, 2, 3, 4])] * 3),
    splits=st.tuples(*[st.booleans()] * 3),
    evens=st.tuples(*[st.booleans()] * 3),
    kind=st.sampled_from(["shuffle", "plain", "walked", "stream"]),
    cuts=st.tuples(st.integers(1, 8), st.integers(1, 8)),
)
def test_on_other_ranks_the_samples_go_on_in_the_same_global_order(
    count, sizes, worlds, splits, evens, kind, cuts
):
    def ranks(turn):
        size = sizes[turn] * (worlds[turn] if splits[turn] else 1)

        def make():
            if kind == "stream":
                return DataLoader(Stream(count), batch_size=size)
            more = {"sampler": Walked(count)} if kind == "walked" else {"shuffle": kind == "shuffle"}
            return DataLoader(Numbers(count), batch_size=size, **more)

        even = evens[turn] or kind == "stream"
        return simulated(make, worlds[turn], split_batches=splits[turn], even_batches=even, data_seed=turn)

    def samples(parts):
        steps = max(map(len, parts))
        flat = [
            [part[step] if step < len(part) else ([], 0, 0, None) for part in parts] for step in range(steps)
        ]
        return [v for step in flat for v in list(chain.from_iterable(i[0] for i in step))[: step[0][3]]]

    expected = samples([epoch(loader, window)[0] for loader, window in ranks(0)])
    assert sorted(expected) == list(range(count))
    seen, position = [], None
    for turn in range(3):
        parts, positions = [], []
        cut = cuts[turn] if turn < 2 else None
        for loader, window in ranks(turn):
            if position is not None:
                loader.resume_at(position)
            part, reached = epoch(loader, window, cut)
            parts.append(part if reached is None else part[:cut])
            positions.append(reached)
        seen += samples(parts)
        position = positions[0]
        if position is None or position["ended"]:
            break
        assert position["samples"] == len(seen)
    assert seen == expected


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(
    ("data", "workers", "persistent"),
    [
        ("indexed", 0, False),
        ("indexed", 2, False),
        ("indexed", 2, True),
        ("stream", 0, False),
        ("stream", 2, False),
        ("stream", 2, True),
        ("split", 2, False),
        ("batches", 0, False),
        ("batches", 2, False),
    ],
)
def test_with_workers(world, data, workers, persistent):
    def make():
        dataset = {"stream": Stream, "split": SplitStream}.get(data, Numbers)(23)
        more = {"num_workers": workers, "persistent_workers": persistent}
        if data == "batches":
            cut = [list(range(at, min(at + 1 + at % 3, 23))) for at in range(23)]
            return DataLoader(dataset, batch_sampler=cut, **more)
        return DataLoader(dataset, batch_size=2, shuffle=True if data == "indexed" else None, **more)

    more = {"even_batches": data != "batches"}
    loader, window = simulated(make, world, **more)[-1]
    epoch(loader, window)
    whole, position = epoch(loader, window, 3)
    following, _ = epoch(loader, window)
    again, window = simulated(make, world, **more)[-1]
    again.resume_at(position)
    rest, second = epoch(again, window, 1)
    assert rest == whole[3:]
    assert epoch(again, window)[0] == following
    again.resume_at(second)
    assert epoch(again, window)[0] == whole[4:], "in a process that has read already"
    assert epoch(again, window)[0] == following


class TestWhere:
    def loader(self, **kwargs):
        window = GradientWindow()
        loader = DataLoader(Numbers(10), batch_size=3, shuffle=True, **kwargs)
        return prepare_data_loader(loader, window=window, data_seed=1), window

    def test_before_the_first_and_between_epochs(self):
        loader, window = self.loader()
        start = loader.position()
        assert (start["epoch"], start["samples"], start["begun"]) == (0, 0, False)
        epochs = [epoch(loader, window)[0] for _ in range(3)]
        again, window = self.loader()
        again.resume_at(start)
        assert epoch(again, window)[0] == epochs[0]
        position = again.position()
        assert (position["epoch"], position["samples"]) == (1, 0)
        third, window = self.loader()
        third.resume_at(position)
        assert [epoch(third, window)[0] for _ in range(2)] == epochs[1:]

    def test_the_last_batch_leaves_an_empty_iteration_and_its_end(self):
        loader, window = self.loader()
        _, position = epoch(loader, window, 4)
        assert position["ended"]
        following = epoch(loader, window)[0]
        again, window = self.loader()
        again.resume_at(position)
        assert again.iteration == 0
        before = torch.get_rng_state()
        ran = [(number, epoch(again, window)[0]) for number in range(again.iteration, 2)]
        assert ran == [(0, []), (1, following)]
        again.resume_at(position)
        assert list(again) == []
        torch.set_rng_state(before)
        again.resume_at(position)
        list(again)
        assert torch.get_rng_state().equal(before), "nothing is drawn for nothing"

    def test_after_a_break_the_next_epoch_follows(self):
        loader, window = self.loader()
        for number in loader:
            batch, inside = number, loader.position()
            break
        after = loader.position()
        assert (inside["epoch"], inside["samples"]) == (0, 3)
        assert (after["epoch"], after["samples"], after["begun"]) == (1, 0, False)
        stay = loader.position(resume_left=True)
        assert (stay["epoch"], stay["samples"], stay["begun"]) == (0, 3, True)
        following = epoch(loader, window)[0]
        again, window = self.loader()
        again.resume_at(after)
        assert epoch(again, window)[0] == following
        again.resume_at(stay)
        rest = epoch(again, window)[0]
        assert sorted(batch.tolist() + [v for item in rest for v in item[0]]) == list(range(10))

    def test_set_epoch_keeps_the_position_of_its_epoch_and_drops_others(self):
        loader, window = self.loader()
        whole, position = epoch(loader, window, 2)
        other = epoch(loader, window)[0]
        for number, expected in ((0, whole[2:]), (1, other)):
            again, window = self.loader()
            again.resume_at(position)
            again.set_epoch(number)
            assert epoch(again, window)[0] == expected
        again.resume_at(position)
        again.set_epoch(1)
        again.set_epoch(0)
        assert epoch(again, window)[0] == whole

    def test_skip_first_batches_replaces_the_position(self):
        # Scripts written for a library that saves no position load a state and then skip: not both.
        for skip in (0, 1, 2, 3):
            loader, window = self.loader()
            whole, position = epoch(loader, window, 2)
            following = epoch(loader, window)[0]
            again, window = self.loader()
            again.resume_at(position)
            rest = skip_first_batches(again, skip)
            assert epoch(rest, window)[0] == whole[skip:]
            assert epoch(again, window)[0] == following

    def test_the_position_of_the_source_speaks_of_the_loader_that_skips(self):
        loader, window = self.loader()
        rest = skip_first_batches(loader, 1)
        for _ in rest:
            position = loader.position()
            assert position == rest.position()
            break
        assert position["samples"] == 6
        again, window = self.loader()
        again.resume_at(position)
        assert len(epoch(again, window)[0]) == 2

    def test_a_position_resumed_in_the_middle_of_a_loop_counts_from_the_next(self):
        loader, window = self.loader()
        whole, position = epoch(loader, window, 1)
        for _ in loader:
            loader.resume_at(position)
        assert epoch(loader, window)[0] == whole[1:]
        for _ in loader:
            loader.resume_at(position)
            break
        assert epoch(loader, window)[0] == whole[1:]

    def test_nothing_before_the_position_is_read(self):
        for more in ({}, {"sampler": Walked(100)}, {"sampler": DistributedSampler(range(100), 1, 0)}):
            data = Numbers(100)
            loader = prepare_data_loader(DataLoader(data, batch_size=5, **more))
            for number, _ in enumerate(loader):
                if number == 9:
                    position = loader.position()
            again = prepare_data_loader(DataLoader(data, batch_size=5, **more))
            again.resume_at(position)
            data.read.clear()
            next(iter(again))
            assert len(data.read) <= 10
            assert position["samples"] == 50


class Noisy(Numbers):
    """Samples that draw from all global generators."""

    def __getitem__(self, index):
        numpy = pytest.importorskip("numpy")
        return torch.tensor(
            [index, torch.rand(()), random.random(), numpy.random.rand()], dtype=torch.float64
        )


class NoisyStream(Stream):
    """A stream in an order of the global generators, as it is where they are seeded for the whole run."""

    def __iter__(self):
        order = list(range(self.count))
        random.shuffle(order)
        yield from (order[place] for place in torch.randperm(self.count).tolist())


class NoisySampler(Walked):
    def __iter__(self):
        order = torch.randperm(self.count).tolist()
        random.shuffle(order)
        return iter(order)


@pytest.mark.parametrize(
    ("kind", "workers", "persistent"),
    [
        *[(kind, 0, False) for kind in ("indexed", "noisy", "sampler", "stream", "generator", "distributed")],
        *[(kind, 2, False) for kind in ("indexed", "sampler", "generator")],
        ("stream", 1, False),
        *[(kind, 2, True) for kind in ("indexed", "generator")],
    ],
)
def test_random_numbers_are_those_of_the_run_that_went_on(kind, workers, persistent):
    before = host_states()

    def make():
        data = Noisy(20) if kind == "noisy" else NoisyStream(20) if kind == "stream" else Numbers(20)
        more = {}
        if kind == "sampler":
            more["sampler"] = NoisySampler(20)
        elif kind == "distributed":
            more["sampler"] = DistributedSampler(data, 1, 0, seed=5)
        elif kind != "stream":
            more["shuffle"] = True
        if kind == "generator":
            more["generator"] = torch.Generator().manual_seed(2)
        loader = DataLoader(data, batch_size=3, num_workers=workers, persistent_workers=persistent, **more)
        return prepare_data_loader(loader, data_seed=0)

    def body(batch):
        return batch.tolist(), torch.rand(2).tolist(), random.random()

    try:
        torch.manual_seed(4)
        random.seed(4)
        loader = make()
        seen, saved = [], {}
        for number in range(3):
            for at, batch in enumerate(loader):
                seen.append(body(batch))
                if number < 2 and at in (0, 3, 6):
                    saved[len(seen)] = loader.position(), host_states()
            saved[len(seen) + 0.5] = loader.position(), host_states()
        for at, (position, states) in saved.items():
            again = make()
            torch.manual_seed(99)
            random.seed(99)
            again.resume_at(position)
            set_host_states(states)
            rest = [body(batch) for _ in range(again.iteration, 3) for batch in again]
            assert rest == seen[int(at) :], at
    finally:
        set_host_states(before)


class Filtering(DataLoader):
    """A loader that iterates in its own way."""

    def __iter__(self):
        return (batch for batch in super().__iter__() if int(batch[0]) % 3)


class Ragged(IterableDataset):
    """Whole batches, of different sizes."""

    def __iter__(self):
        return (torch.arange(2 * number, 2 * number + 2 + number % 2) for number in range(11))


@pytest.mark.parametrize(
    ("make", "world", "samples"),
    [
        (lambda: DataLoader(Numbers(10), batch_size=None, shuffle=True), 1, 3),
        (lambda: DataLoader(Numbers(10), batch_size=None, sampler=Walked(10)), 1, 3),
        (lambda: DataLoader(Ragged(), batch_size=None), 1, 3),
        (lambda: DataLoader(Ragged(), batch_size=None), 2, 6),
        (lambda: DataLoader(Numbers(30), batch_size=4, sampler=list(range(29, -1, -1))), 2, 24),
        (lambda: Filtering(Numbers(30), batch_size=2, shuffle=True), 1, None),
        (lambda: Filtering(Numbers(30), batch_size=2, shuffle=True), 2, None),
        (lambda: Filtering(Stream(30), batch_size=2), 1, None),
    ],
    ids=["items", "sampler", "batches", "batches of 2", "list", "own", "own of 2", "own stream"],
)
def test_loaders_of_other_kinds(make, world, samples):
    def walk(loader, stop=None):
        seen, position = [], None
        for number, batch in enumerate(loader, 1):
            seen.append(batch if isinstance(batch, int) else batch.tolist())
            position = loader.position() if number == stop else position
        return seen, position

    for rank in range(world):
        loader, again = (simulated(make, world)[rank][0] for _ in range(2))
        whole, position = walk(loader, 3)
        following, _ = walk(loader)
        assert position["samples"] == samples
        again.resume_at(position)
        rest, second = walk(again, 1)
        assert rest == whole[3:]
        assert walk(again)[0] == following
        again.resume_at(second)
        assert walk(again)[0] == whole[4:]


def test_a_loader_that_iterates_in_its_own_way_needs_batches_as_they_were():
    loader = prepare_data_loader(Filtering(Numbers(30), batch_size=2))
    for _ in loader:
        position = loader.position()
        break
    other = prepare_data_loader(Filtering(Numbers(30), batch_size=3))
    with pytest.raises(DataError, match="the class of the loader iterates in its own way"):
        other.resume_at(position)
    rest = skip_first_batches(prepare_data_loader(Filtering(Numbers(30), batch_size=2)), 1)
    for _ in rest:
        with pytest.raises(DataError, match="go together with those that were left out"):
            rest.position()
        break


def test_samplers_with_the_seed_of_the_loader_go_on():
    for sampler in (WeightedRandomSampler([1.0] * 30, 24), RandomSampler(range(30), num_samples=40)):
        loaders = [
            prepare_data_loader(DataLoader(Numbers(30), batch_size=4, sampler=copy.deepcopy(sampler)))
            for _ in range(2)
        ]
        window = GradientWindow()
        loaders[0]._plan.window = loaders[1]._plan.window = window
        whole, position = epoch(loaders[0], window, 3)
        following, _ = epoch(loaders[0], window)
        loaders[1].resume_at(position)
        assert epoch(loaders[1], window)[0] == whole[3:]
        assert epoch(loaders[1], window)[0] == following


class TestStreamsWithAPlaceOfTheirOwn:
    @pytest.mark.parametrize("stop", [128, 150])
    @pytest.mark.parametrize("world", [1, 2])
    @pytest.mark.parametrize("more", [{}, {"even_batches": False}, {"sharding": "sharded"}], ids=str)
    def test_little_is_read_again(self, world, more, stop):
        make = lambda: DataLoader(PlacedStream(2001), batch_size=5)  # noqa: E731
        loader, window = simulated(make, world, **more)[-1]
        whole, position = epoch(loader, window, stop)
        following, _ = epoch(loader, window)
        again, window = simulated(make, world, **more)[-1]
        again.resume_at(position)
        dataset = getattr(again.dataset, "unsharded", again.dataset)
        rest, second = epoch(again, window, 9)
        assert rest == whole[stop:]
        divided = 1 if more.get("sharding") else world
        assert dataset.read < 2001 - stop * 5 * divided + 70 * 5 * divided
        assert epoch(again, window)[0] == following
        again.resume_at(second)
        assert epoch(again, window)[0] == whole[stop + 9 :]

    def test_in_a_process_that_has_read_already(self):
        loader, window = simulated(lambda: DataLoader(PlacedStream(40), batch_size=3), 1)[0]
        whole, position = epoch(loader, window, 2)
        for _ in loader:
            break
        loader.resume_at(position)
        assert epoch(loader, window)[0] == whole[2:]

    def test_skipping_begins_at_the_start_of_the_epoch(self):
        loader, window = simulated(lambda: DataLoader(PlacedStream(40), batch_size=3), 1)[0]
        whole, position = epoch(loader, window, 5)
        loader.resume_at(position)
        assert epoch(skip_first_batches(loader, 2), window)[0] == whole[2:]

    @pytest.mark.parametrize("buffer", [0, 16])
    @pytest.mark.parametrize("shards", [1, 2])
    def test_streams_of_datasets(self, buffer, shards):
        datasets = pytest.importorskip("datasets")

        def make():
            data = datasets.Dataset.from_dict({"x": list(range(600))}).to_iterable_dataset(num_shards=shards)
            data = data.shuffle(seed=3, buffer_size=buffer) if buffer else data
            return DataLoader(data.map(lambda row: {"x": row["x"] * 2}), batch_size=3)

        def walk(loader, stop=None):
            seen, position = [], None
            for number, batch in enumerate(loader, 1):
                seen.append(batch["x"].tolist())
                position = loader.position() if number == stop else position
            return seen, position

        for world in (1, 2):
            loader, _ = simulated(make, world)[-1]
            walk(loader)
            whole, position = walk(loader, 80)
            following, _ = walk(loader)
            assert ("state" in position) == (not buffer)
            again, _ = simulated(make, world)[-1]
            again.resume_at(position)
            assert walk(again)[0] == whole[80:]
            assert walk(again)[0] == following


class Secret(Walked):
    """An order that only this object knows: it draws from a generator of its own, epoch after epoch."""

    def __init__(self, count):
        super().__init__(count)
        self.own = random.Random(3)

    def __iter__(self):
        order = list(range(self.count))
        self.own.shuffle(order)
        return iter(order)


class TestRefusals:
    @pytest.mark.parametrize("world", [1, 2])
    @pytest.mark.parametrize("size", [3, 5])
    def test_an_order_that_is_not_the_one_that_was_saved(self, world, size):
        make = lambda size: DataLoader(Numbers(90), batch_size=size, sampler=Secret(90))  # noqa: E731
        loader, window = simulated(lambda: make(3), world)[-1]
        _, position = epoch(loader, window, 4)
        for first in (True, False):
            again, window = simulated(lambda: make(size), world)[-1]
            if first:
                again.resume_at(position)
                assert len(epoch(again, window)[0]) == -(-(90 - 12 * world) // (size * world))
                continue
            epoch(again, window)
            again.resume_at(position)
            with pytest.raises(DataError, match="another order than in the run that was saved"):
                list(again)

    def saved(self, make, stop=2, world=1, **kwargs):
        loader, window = simulated(make, world, **kwargs)[0]
        return epoch(loader, window, stop)[1]

    @pytest.mark.parametrize("wrong", [{}, {"epoch": 1}, None])
    def test_something_else(self, wrong):
        loader = prepare_data_loader(DataLoader(Numbers(10)))
        wrong = loader.position() | {"samples": -4} if wrong is None else wrong
        with pytest.raises(DataError, match="no position of a loader"):
            loader.resume_at(wrong)
        with pytest.raises(DataError, match="version 7"):
            loader.resume_at(loader.position() | {"version": 7})

    def test_other_data_or_another_order(self):
        position = self.saved(lambda: DataLoader(Numbers(20), batch_size=2, shuffle=True))
        for other, match in (
            (DataLoader(Numbers(21), batch_size=2, shuffle=True), "length of the order is 21, and was 20"),
            (DataLoader(Numbers(20), batch_size=2), "order is SequentialSampler, and was Seedable"),
            (DataLoader(Stream(20), batch_size=2), "kind of data is stream, and was indexed"),
        ):
            with pytest.raises(DataError, match=match):
                prepare_data_loader(other).resume_at(position)

    def test_between_epochs_the_data_may_change(self):
        loader = prepare_data_loader(DataLoader(Numbers(20), batch_size=2, shuffle=True))
        list(loader)
        other = prepare_data_loader(DataLoader(Numbers(30), batch_size=2, shuffle=True))
        other.resume_at(loader.position())
        assert other.iteration == 1
        assert len(list(other)) == 15

    def test_what_ranks_hold_themselves(self):
        make = lambda: DataLoader(Numbers(20), batch_size=2)  # noqa: E731
        position = self.saved(make, world=2, sharding="sharded")
        same, _ = simulated(make, 2, sharding="sharded")[0]
        same.resume_at(position)
        assert next(iter(same)).tolist() == [4, 5]
        for world, rank in ((2, 1), (4, 0), (1, 0)):
            other, _ = simulated(make, world, sharding="sharded")[rank]
            with pytest.raises(DataError, match="cannot be dealt out anew"):
                other.resume_at(position)
        whole, _ = simulated(make, 2)[0]
        with pytest.raises(DataError, match="cannot be dealt out anew"):
            whole.resume_at(position)

    def test_streams_that_workers_divide(self):
        make = lambda: DataLoader(SplitStream(60), batch_size=2, num_workers=2)  # noqa: E731
        for world in (1, 2):
            position = self.saved(make, world=world)
            assert position["samples"] is None
            other, _ = simulated(make, 3)[0]
            with pytest.raises(DataError, match="how many samples of the whole were read is not known"):
                other.resume_at(position)

    def test_a_stream_that_turns_out_to_be_divided_by_its_workers(self, monkeypatch):
        class Info:
            id, num_workers = 0, 2

        # In this process: torch ends worker processes that have failed only after seconds.
        info = Info()
        monkeypatch.setattr(accel_data.stream, "get_worker_info", lambda: info)
        monkeypatch.setitem(globals(), "get_worker_info", lambda: info)
        shard = accel_data.IterableDatasetShard(SplitStream(60), 2, num_processes=2)
        shard.skip = 8
        with pytest.raises(DataError, match="each worker process reads a part of the stream"):
            list(shard)
        shard = accel_data.IterableDatasetShard(Stream(60), 2, num_processes=2)
        shard.skip = 8
        assert list(shard)[:4] == [8, 9, 16, 17]

    def test_streams_that_workers_read_in_turn_are_elastic(self):
        make = lambda: DataLoader(Stream(41), batch_size=2, num_workers=2)  # noqa: E731
        position = self.saved(make, world=2, stop=3)
        assert position["samples"] == 12
        parts = []
        for other, window in simulated(make, 3):
            other.resume_at(position)
            parts.append(epoch(other, window)[0])
        assert real(parts) == list(range(12, 41))

    def test_one_worker_and_batches_of_another_size(self):
        position = self.saved(lambda: DataLoader(Stream(40), batch_size=6))
        loader, window = simulated(lambda: DataLoader(Stream(40), batch_size=4, num_workers=1), 1)[0]
        loader.resume_at(position)
        assert epoch(loader, window)[0][0][0] == [12, 13, 14, 15]
        odd = prepare_data_loader(DataLoader(Stream(40), batch_size=5, num_workers=1))
        with pytest.raises(DataError, match="up to sample 12, where batches of 5"):
            odd.resume_at(position)

    def test_batches_out_of_order(self):
        loader = prepare_data_loader(DataLoader(Numbers(20), batch_size=2, num_workers=2, in_order=False))
        assert loader.position()["samples"] == 0
        for _ in loader:
            with pytest.raises(DataError, match="in_order=False"):
                loader.position()
            break


@pytest.mark.parametrize("data", [Numbers, Stream])
def test_a_loader_goes_with_its_last_user(data):
    # Worker processes live as long as it does; a collector that comes by later ends them much more slowly.
    loader = simulated(lambda: DataLoader(data(9), batch_size=2), 2)[0][0]
    for _ in loader:
        position = loader.position()
    for _ in loader:
        break
    loader.resume_at(position)
    list(loader)
    gone = weakref.ref(loader)
    gc.disable()
    try:
        del loader
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("own", [False, True], ids=["seeded", "own generator"])
@pytest.mark.parametrize(("start", "skipped"), [(1, 0), (0, 4)], ids=["next epoch", "all of the old one"])
def test_scripts_that_skip_by_themselves_go_on_after_the_end_of_an_epoch(own, start, skipped):
    """They load a position of the last batch, and count epochs and batches themselves."""

    def make():
        generator = torch.Generator().manual_seed(1) if own else None
        torch.manual_seed(5)
        loader = DataLoader(torch.arange(8), batch_size=2, shuffle=True, generator=generator)
        return prepare_data_loader(loader, put_on_device=False)

    loader = make()
    first = [batch.tolist() for batch in loader]
    wanted = [[batch.tolist() for batch in loader] for _ in range(2)]
    loader = make()
    for number, _ in enumerate(loader):
        if number == 3:
            position = loader.position()
    loader = make()
    loader.resume_at(position)
    got = []
    for epoch in range(start, 3):
        source = skip_first_batches(loader, skipped) if epoch == start else loader
        got += [[batch.tolist() for batch in source]]
    assert [each for each in got if each] == wanted
    assert sorted(chain(*first)) == list(range(8))
