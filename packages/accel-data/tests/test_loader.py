"""Prepared loaders on one process, or on simulated ranks: settings kept, cursor right, epochs exact."""

import gc
from itertools import chain
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from accel_core.errors import AlreadyShardedError, PrepareError, UnknownNameError
from accel_core.window import GradientWindow
from accel_data import (
    BatchSamplerShard,
    DataLoaderDispatcher,
    DataLoaderShard,
    IterableDatasetShard,
    SeedableRandomSampler,
    epoch_seed,
    prepare_data_loader,
    skip_first_batches,
)


class Numbers(Dataset):
    def __init__(self, count):
        self.values = torch.arange(count)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return self.values[index]


class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(range(self.count))

    def __len__(self):
        return self.count


class SplitStream(Stream):
    """A stream that divides itself among worker processes."""

    def __iter__(self):
        info = get_worker_info()
        return iter(range(self.count) if info is None else range(info.id, self.count, info.num_workers))


def lists(loader):
    return [batch.tolist() for batch in loader]


def cursors(loader, window):
    found = []
    for batch in loader:
        cursor = window.active
        found.append((batch.tolist(), cursor.end, cursor.remaining, cursor.valid, cursor.world_batch))
    return found


def on_ranks(make, world, **kwargs):
    """The prepared loaders of all ranks with their windows."""
    made = []
    for rank in range(world):
        window = GradientWindow()
        made.append(
            (
                prepare_data_loader(make(), num_processes=world, process_index=rank, window=window, **kwargs),
                window,
            )
        )
    return made


@given(count=st.integers(0, 40), size=st.integers(1, 8), drop=st.booleans())
def test_one_process_gives_what_plain_torch_gives(count, size, drop):
    plain = DataLoader(Numbers(count), batch_size=size, drop_last=drop)
    window = GradientWindow()
    loader = prepare_data_loader(plain, window=window)
    expected = lists(plain)
    seen = cursors(loader, window)
    assert [item[0] for item in seen] == expected
    assert [item[1:] for item in seen] == [
        (k == len(expected) - 1, len(expected) - k, None, len(batch)) for k, batch in enumerate(expected)
    ]
    assert len(loader) == len(plain)
    assert window.active is None


@given(
    count=st.integers(1, 60), size=st.integers(1, 6), world=st.sampled_from([2, 3, 4]), split=st.booleans()
)
def test_removing_the_padding_gives_exactly_the_data(count, size, world, split):
    batch = size * world if split else size
    ranks = on_ranks(lambda: DataLoader(Numbers(count), batch_size=batch), world, split_batches=split)
    seen = [cursors(loader, window) for loader, window in ranks]
    kept = []
    for step in zip(*seen, strict=True):
        values = [value for batch, *_ in step for value in batch]
        (_, _, valid, world_batch), *others = {item[1:] for item in step}
        assert not others
        assert len(values) == world_batch == size * world
        kept += values[:valid]
    assert kept == list(range(count))
    assert [item[2] for item in seen[0]] == list(range(len(seen[0]), 0, -1))
    assert ranks[0][0].total_batch_size == size * world
    assert ranks[0][0].total_dataset_length == count


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 13])
def test_streams_carry_their_validity(count, drop, workers):
    seen = []
    for rank in range(2):
        loader = DataLoader(Stream(count), batch_size=2, drop_last=drop, num_workers=workers)
        window = GradientWindow()
        prepared = prepare_data_loader(loader, num_processes=2, process_index=rank, window=window)
        seen.append(cursors(prepared, window))
        assert len(prepared) == len(seen[-1])
        assert prepared.total_batch_size == 4
        assert prepared.total_dataset_length == count
        assert window.active is None
    kept = [
        value
        for step in zip(*seen, strict=True)
        for value in list(chain.from_iterable(item[0] for item in step))[: step[0][3]]
    ]
    assert kept == list(range(count // 4 * 4 if drop else count))
    assert all(len(item[0]) == 2 and item[4] == 4 for part in seen for item in part)
    assert [item[1] for item in seen[0]] == [False] * (len(seen[0]) - 1) + [True] * bool(seen[0])


def test_a_stream_that_splits_itself_among_workers_keeps_its_split():
    seen = []
    for rank in range(2):
        window = GradientWindow()
        loader = DataLoader(SplitStream(14), batch_size=2, num_workers=2)
        prepared = prepare_data_loader(loader, num_processes=2, process_index=rank, window=window)
        seen.append(cursors(prepared, window))
    kept = [
        value
        for step in zip(*seen, strict=True)
        for value in list(chain.from_iterable(item[0] for item in step))[: step[0][3]]
    ]
    assert sorted(kept) == list(range(14))
    # Each worker's part has a last round of its own, in the middle of the iteration for the first.
    assert [item[3] for item in seen[0]] == [None, None, 3, 3]


def test_a_stream_of_whole_batches_is_dealt_in_turn():
    class Batches(IterableDataset):
        def __iter__(self):
            yield from (torch.arange(10), torch.arange(10, 13), torch.arange(13, 20))

    ranks = on_ranks(lambda: DataLoader(Batches(), batch_size=None), 2)
    seen = [cursors(loader, window) for loader, window in ranks]
    assert [[item[0][0] for item in part] for part in seen] == [[0, 13], [10, 0]]
    assert [item[3] for item in seen[0]] == [None, 7]


def test_uneven_streams_on_request_end_where_the_data_ends():
    ranks = on_ranks(lambda: DataLoader(Stream(7), batch_size=2), 2, even_batches=False)
    assert [lists(loader) for loader, _ in ranks] == [[[0, 1], [4, 5]], [[2, 3], [6]]]


@pytest.mark.parametrize(("split", "drop"), [(False, False), (False, True), (True, False), (True, True)])
def test_iterable_shards_yield_samples_by_themselves(split, drop):
    parts = [list(IterableDatasetShard(Stream(11), 4, drop, 2, rank, split)) for rank in range(2)]
    if split:
        expected = [[0, 1, 4, 5], [2, 3, 6, 7]] if drop else [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 0]]
    else:
        expected = (
            [[0, 1, 2, 3], [4, 5, 6, 7]] if drop else [[0, 1, 2, 3, 8, 9, 10, 0], [4, 5, 6, 7, 1, 2, 3, 4]]
        )
    assert parts == expected
    assert [len(IterableDatasetShard(Stream(11), 4, drop, 2, rank, split)) for rank in range(2)] == [
        len(part) for part in parts
    ]


def test_a_stream_shorter_than_a_round_repeats_its_first_samples():
    assert [list(IterableDatasetShard(Stream(1), 2, False, 4, rank)) for rank in range(4)] == [[0, 0]] * 4


class TestOrder:
    def test_shuffling_follows_from_seed_and_epoch_alone(self):
        def epochs(world):
            torch.manual_seed(7)
            size = 8 // world
            ranks = []
            for rank in range(world):
                torch.manual_seed(7)
                loader = DataLoader(Numbers(21), batch_size=size, shuffle=True)
                ranks.append(
                    prepare_data_loader(loader, num_processes=world, process_index=rank, even_batches=False)
                )
            result = []
            for _ in range(3):
                parts = [lists(loader) for loader in ranks]
                steps = range(max(map(len, parts)))
                result.append([v for k in steps for part in parts if k < len(part) for v in part[k]])
            return result

        one = epochs(1)
        assert epochs(2) == one
        assert epochs(4) == one
        assert all(sorted(epoch) == list(range(21)) for epoch in one)
        assert one[0] != one[1] != one[2]

    def test_the_documented_derivation(self):
        loader = prepare_data_loader(DataLoader(Numbers(9), shuffle=True), data_seed=4)
        loader.set_epoch(2)
        generator = torch.Generator()
        generator.manual_seed(epoch_seed(4, 2))
        assert [value for (value,) in lists(loader)] == torch.randperm(9, generator=generator).tolist()
        assert epoch_seed(0, 1) != epoch_seed(1, 0)

    def test_the_seeds_of_epochs_never_change(self):
        # Checkpoints hold seed and epoch only: other numbers would give every resumed run other data.
        assert epoch_seed(0, 0) == 10093354209877388555
        assert epoch_seed(42, 7) == 15479400592354056067

    def test_set_epoch_goes_anywhere_and_epochs_advance_by_themselves(self):
        loader = prepare_data_loader(DataLoader(Numbers(20), batch_size=20, shuffle=True), data_seed=1)
        first, second, third = lists(loader), lists(loader), lists(loader)
        assert loader.iteration == 3
        loader.set_epoch(1)
        assert lists(loader) == second
        assert lists(loader) == third
        loader.set_epoch(0)
        assert lists(loader) == first

    def test_an_epoch_left_early_is_over(self):
        """A loop that always stops after the first batch must not always see the same one."""
        loader = prepare_data_loader(DataLoader(Numbers(20), batch_size=5, shuffle=True), data_seed=1)
        whole = [lists(loader) for _ in range(3)]
        loader.set_epoch(0)
        for epoch in range(2):
            for batch in loader:
                assert batch.tolist() == whole[epoch][0]
                assert loader.iteration == epoch
                break
        assert lists(loader) == whole[2]
        assert loader.iteration == 3

    def test_an_iteration_inside_another_is_an_epoch_of_its_own(self):
        loader = prepare_data_loader(DataLoader(Numbers(20), batch_size=5, shuffle=True), data_seed=1)
        whole = [lists(loader) for _ in range(3)]
        loader.set_epoch(0)
        outer, inner = [], []
        for batch in loader:
            outer.append(batch.tolist())
            inner = inner or lists(loader)
        assert [outer, inner] == whole[:2]
        assert lists(loader) == whole[2]

    def test_a_user_generator_is_kept_and_gives_the_order_of_plain_torch(self):
        def generator():
            return torch.Generator().manual_seed(9)

        plain = DataLoader(Numbers(17), batch_size=3, shuffle=True, generator=generator())
        expected = [lists(plain) for _ in range(3)]
        own = generator()
        loader = prepare_data_loader(DataLoader(Numbers(17), batch_size=3, shuffle=True, generator=own))
        assert loader.synchronized_generator is own
        assert loader.generator is own
        assert [lists(loader) for _ in range(3)] == expected
        parts = [
            prepare_data_loader(
                DataLoader(Numbers(17), batch_size=3, shuffle=True, generator=generator()),
                num_processes=2,
                process_index=rank,
                even_batches=False,
            )
            for rank in range(2)
        ]
        for epoch in expected:
            zero, one = map(lists, parts)
            assert zero == epoch[::2]
            assert one == epoch[1::2]

    def test_use_seedable_sampler_takes_the_seed_of_the_user_generator(self):
        loader = DataLoader(Numbers(5), shuffle=True, generator=torch.Generator().manual_seed(9))
        prepared = prepare_data_loader(loader, use_seedable_sampler=True)
        sampler = prepared.get_sampler()
        assert isinstance(sampler, SeedableRandomSampler)
        assert sampler.seed == 9
        assert isinstance(loader.sampler, RandomSampler)
        assert not isinstance(loader.sampler, SeedableRandomSampler), "the user's loader is left alone"

    @pytest.mark.parametrize(
        "sampler",
        [
            lambda: SubsetRandomSampler(list(range(12))),
            lambda: WeightedRandomSampler([1.0] * 12, 12),
            lambda: RandomSampler(Numbers(12), replacement=True, num_samples=12),
        ],
        ids=["subset", "weighted", "replacement"],
    )
    def test_samplers_without_generator_are_seeded_and_kept(self, sampler):
        def epochs(world):
            ranks = []
            for rank in range(world):
                loader = DataLoader(Numbers(12), sampler=sampler(), batch_size=4 // world)
                ranks.append(
                    prepare_data_loader(loader, num_processes=world, process_index=rank, data_seed=3)
                )
                assert type(ranks[-1].get_sampler()) in (type(loader.sampler), SeedableRandomSampler)
            return [[list(chain(*step)) for step in zip(*map(lists, ranks), strict=True)] for _ in range(2)]

        one = epochs(1)
        assert one[0] != one[1]
        assert epochs(2) == one
        loader = prepare_data_loader(DataLoader(Numbers(12), sampler=sampler(), batch_size=12), data_seed=3)
        loader.set_epoch(1)
        assert lists(loader) == [list(chain(*one[1]))], "an epoch can be reached without the ones before it"
        other = DataLoader(Numbers(12), sampler=sampler(), batch_size=12)
        assert lists(prepare_data_loader(other, data_seed=4)) != [list(chain(*one[0]))]

    def test_custom_samplers_and_batch_samplers_are_kept_and_told_the_epoch(self):
        class Own(Sampler):
            epoch = None

            def set_epoch(self, epoch):
                self.epoch = epoch

            def __iter__(self):
                return iter(range(8) if not self.epoch else reversed(range(8)))

            def __len__(self):
                return 8

        own = Own()
        loader = prepare_data_loader(DataLoader(Numbers(8), sampler=own, batch_size=4))
        assert loader.get_sampler() is own
        assert own.epoch is None, "prepare does not undo a set_epoch of the user's"
        assert lists(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert own.epoch == 1
        assert lists(loader) == [[7, 6, 5, 4], [3, 2, 1, 0]]
        batches = BatchSampler(Own(), 4, False)
        custom = type("Custom", (BatchSampler,), {})(Own(), 2, False)
        assert prepare_data_loader(DataLoader(Numbers(8), batch_sampler=custom)).batch_sampler is custom
        sharded = prepare_data_loader(
            DataLoader(Numbers(8), batch_sampler=batches), num_processes=2, process_index=1
        )
        assert sharded.batch_sampler.batch_sampler is batches
        assert lists(sharded) == [[4, 5, 6, 7]]
        sharded.set_epoch(5)
        assert batches.sampler.epoch == 5

    @pytest.mark.parametrize("persistent", [False, True])
    def test_set_epoch_reaches_the_dataset_in_its_workers(self, persistent):
        class Epochs(Stream):
            epoch = 0

            def set_epoch(self, epoch):
                self.epoch = epoch

            def __iter__(self):
                return iter([self.epoch] * 4)

        loader = DataLoader(Epochs(4), batch_size=2, num_workers=1, persistent_workers=persistent)
        for prepared in (
            prepare_data_loader(loader),
            prepare_data_loader(loader, num_processes=2, process_index=0),
        ):
            prepared.set_epoch(0)
            assert {v for batch in lists(prepared) for v in batch} == {0}
            assert {v for batch in lists(prepared) for v in batch} == {1}
            prepared.set_epoch(6)
            assert {v for batch in lists(prepared) for v in batch} == {6}

    def test_a_generator_that_is_not_torchs_and_one_that_cannot_be_set_are_left_alone(self):
        class Own(Sampler):
            def __iter__(self):
                return iter(range(4))

            def __len__(self):
                return 4

        class Computed(Own):
            @property
            def generator(self):
                return None

        foreign = Own()
        foreign.generator = "numpy"
        for sampler in (foreign, Computed()):
            loader = prepare_data_loader(DataLoader(Numbers(4), sampler=sampler, batch_size=4))
            assert lists(loader) == [[0, 1, 2, 3]]
            assert loader.synchronized_generator is None
        assert foreign.generator == "numpy"

    def test_a_random_sampler_in_a_plain_batch_sampler_is_seeded_without_touching_it(self):
        batches = BatchSampler(RandomSampler(Numbers(8)), 4, False)
        loader = prepare_data_loader(DataLoader(Numbers(8), batch_sampler=batches), data_seed=1)
        same = prepare_data_loader(DataLoader(Numbers(8), batch_size=4, shuffle=True), data_seed=1)
        assert lists(loader) == lists(same)
        assert batches.sampler.generator is None


class TestRebuilding:
    def test_every_setting_is_kept(self):
        def collate(items):
            return torch.stack(items) + 100

        def start(worker):
            torch.manual_seed(worker)

        settings = {
            "num_workers": 2,
            "collate_fn": collate,
            "timeout": 7,
            "worker_init_fn": start,
            "multiprocessing_context": "fork",
            "generator": torch.Generator(),
            "prefetch_factor": 3,
            "persistent_workers": True,
            "in_order": True,
            "drop_last": True,
            "batch_size": 4,
        }
        loader = prepare_data_loader(DataLoader(Numbers(9), **settings), num_processes=2, process_index=1)
        plain = DataLoader(Numbers(9), **settings)
        for name in settings.keys() - {"multiprocessing_context"}:
            assert getattr(loader, name) == getattr(plain, name) or name == "generator"
        assert loader.generator is not None
        assert loader.multiprocessing_context is not None
        assert isinstance(loader, DataLoader)
        assert lists(loader) == [[104, 105, 106, 107]]

    def test_a_subclass_stays_one_with_its_attributes_and_its_iteration(self):
        class Doubling(DataLoader):
            def __init__(self, tag, **kwargs):
                super().__init__(Numbers(6), **kwargs)
                self.tag = tag

            def __iter__(self):
                for batch in super().__iter__():
                    yield batch * 2

        loader = prepare_data_loader(Doubling("mine", batch_size=2))
        assert isinstance(loader, (Doubling, DataLoaderShard))
        assert isinstance(loader, Doubling)
        assert loader.tag == "mine"
        assert lists(loader) == [[0, 2], [4, 6], [8, 10]]

    def test_the_users_loader_still_works_as_before(self):
        plain = DataLoader(Numbers(6), batch_size=2)
        prepare_data_loader(plain, num_processes=3, process_index=2)
        assert lists(plain) == [[0, 1], [2, 3], [4, 5]]

    def test_without_automatic_batching_items_pass_and_batch_samplers_are_sharded(self):
        loader = prepare_data_loader(DataLoader(Numbers(3), batch_size=None))
        assert lists(loader) == [0, 1, 2]
        bulk = DataLoader(Numbers(10), batch_size=None, sampler=BatchSampler(range(10), 3, False))
        ranks = on_ranks(lambda: bulk, 2)
        assert [cursors(*pair) for pair in ranks] == [
            [([0, 1, 2], False, 2, None, 6), ([6, 7, 8], True, 1, 4, 6)],
            [([3, 4, 5], False, 2, None, 6), ([9, 0, 1], True, 1, 4, 6)],
        ]
        assert lists(skip_first_batches(ranks[1][0], 1)) == [[9, 0, 1]]
        assert lists(skip_first_batches(bulk, 3)) == [[9]]
        assert lists(skip_first_batches(loader, 2)) == [2]

    def test_constructor_as_documented(self):
        window = GradientWindow()
        loader = DataLoaderShard(Numbers(5), batch_size=2, skip_batches=1, iteration=4, window=window)
        assert loader.iteration == 4
        assert cursors(loader, window) == [([2, 3], False, 2, None, 2), ([4], True, 1, None, 1)]
        assert loader.iteration == 5
        assert lists(loader) == [[0, 1], [2, 3], [4]]


class TestDevice:
    def test_batches_move_and_containers_keep_their_classes(self):
        class Pair(NamedTuple):
            x: object
            y: object

        class Own:
            def __init__(self, tensor):
                self.tensor = tensor

            def to(self, device):
                return Own(self.tensor.to(device))

        def collate(items):
            tensor = torch.stack(items)
            return {"pair": Pair(tensor, [tensor, "text"]), "own": Own(tensor), "n": 3}

        loader = DataLoader(Numbers(4), batch_size=2, collate_fn=collate)
        batch = next(iter(prepare_data_loader(loader, "meta", put_on_device=True, non_blocking=True)))
        assert batch["pair"].x.device.type == batch["pair"].y[0].device.type == "meta"
        assert batch["own"].tensor.device.type == "meta"
        assert (batch["pair"].y[1], batch["n"]) == ("text", 3)
        assert type(batch["pair"]) is Pair
        left = next(iter(prepare_data_loader(loader, "meta", put_on_device=False)))
        assert left["own"].tensor.device.type == "cpu"

    def test_a_batch_on_the_device_already_is_handed_out_itself(self):
        batches = [torch.zeros(2), torch.ones(2)]
        loader = DataLoader(batches, batch_size=None, collate_fn=lambda item: item)
        prepared = prepare_data_loader(loader, "cpu", put_on_device=True)
        assert all(ours is given for ours, given in zip(prepared, batches, strict=True))

    def test_batches_on_another_device_come_to_the_cpu_plan_too(self):
        batches = [torch.zeros(2, device="meta")]
        loader = DataLoader(batches, batch_size=None, collate_fn=lambda item: item)
        with pytest.raises(NotImplementedError, match="meta"):
            list(prepare_data_loader(loader, "cpu", put_on_device=True))

    def test_a_batch_without_tensors_passes_untouched(self):
        loader = DataLoader(["a", "b"], batch_size=2)
        assert list(prepare_data_loader(loader, "meta", put_on_device=True)) == [["a", "b"]]

    @pytest.mark.gpu
    @pytest.mark.parametrize("workers", [0, 2])
    def test_pinned_batches_go_to_the_gpu_without_waiting(self, workers):
        for data in (Numbers(9), Stream(9)):
            loader = DataLoader(data, batch_size=2, pin_memory=True, num_workers=workers)
            prepared = prepare_data_loader(
                loader, "cuda", num_processes=2, process_index=0, put_on_device=True, non_blocking=True
            )
            batches = list(prepared)
            assert all(batch.device.type == "cuda" for batch in batches)
            assert [batch.tolist() for batch in batches] == [[0, 1], [4, 5], [8, 0]]


class TestWindow:
    def test_nested_loops_see_their_own_cursor(self):
        window = GradientWindow()
        train = prepare_data_loader(DataLoader(Numbers(4), batch_size=2), window=window)
        test = prepare_data_loader(DataLoader(Numbers(3), batch_size=1), window=window)
        for step, _ in enumerate(train):
            outer = window.active
            assert outer.owner is train
            for _ in test:
                assert window.active.owner is test
                if step:
                    break
            gc.collect()
            assert window.active is outer
            assert outer.end == (step == 1)
        assert window.active is None

    def test_break_exception_and_two_iterators(self):
        window = GradientWindow()
        loader = prepare_data_loader(DataLoader(Numbers(6), batch_size=2), window=window)

        def body():
            for _ in loader:
                raise KeyError

        with pytest.raises(KeyError):
            body()
        gc.collect()
        assert window.active is None
        first, second = iter(loader), iter(loader)
        assert window.active is None, "an iterator that was not started runs no loop"
        next(first)
        next(second)
        inner = window.active
        first.close()
        assert window.active is inner
        assert [batch.tolist() for batch in second] == [[2, 3], [4, 5]]
        assert window.active is None

    def test_an_error_of_the_dataset_leaves_no_cursor(self):
        class Broken(Numbers):
            def __getitem__(self, index):
                if index == 4:
                    raise LookupError("sample 4 is broken")
                return super().__getitem__(index)

        window = GradientWindow()
        loader = prepare_data_loader(DataLoader(Broken(6), batch_size=2), window=window)
        with pytest.raises(LookupError, match="sample 4"):
            list(loader)
        assert window.active is None
        assert loader.iteration == 0

    def test_a_sampler_with_a_wrong_length_makes_the_rest_unknown(self):
        class Short(Sampler):
            def __iter__(self):
                return iter(range(6))

            def __len__(self):
                return 4

        window = GradientWindow()
        loader = prepare_data_loader(DataLoader(Numbers(6), sampler=Short(), batch_size=2), window=window)
        assert [item[2] for item in cursors(loader, window)] == [2, 1, 1]


class TestSkip:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("shuffle", [False, True])
    @pytest.mark.parametrize("world", [1, 2])
    def test_only_the_first_epoch_is_skipped(self, shuffle, world, workers):
        def make():
            window = GradientWindow()
            loader = DataLoader(Numbers(23), batch_size=3, shuffle=shuffle, num_workers=workers)
            rank = world - 1
            return window, prepare_data_loader(
                loader, num_processes=world, process_index=rank, window=window, data_seed=2
            )

        window, whole = make()
        first, second = cursors(whole, window), cursors(whole, window)
        window, loader = make()
        skipped = skip_first_batches(loader, 2)
        assert len(skipped) == len(first) - 2
        assert cursors(skipped, window) == first[2:]
        assert len(skipped) == len(first)
        assert cursors(loader, window) == second, "the source goes on with the next epoch"

    def test_data_before_the_start_is_not_loaded(self):
        class Recording(Numbers):
            def __getitem__(self, index):
                read.append(index)
                return super().__getitem__(index)

        class Own(Sampler):
            def __iter__(self):
                return iter(range(8))

            def __len__(self):
                return 8

        for sampler in (None, Own()):
            read = []
            loader = DataLoader(Recording(8), batch_size=2, sampler=sampler)
            assert lists(skip_first_batches(loader, 3)) == [[6, 7]]
            assert read == [6, 7]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_streams_and_dispatched_loaders(self, workers):
        loader = DataLoader(Stream(9), batch_size=2, num_workers=min(workers, 1))
        for prepared in (prepare_data_loader(loader), prepare_data_loader(loader, dispatch_batches=True)):
            assert lists(skip_first_batches(prepared, 3)) == [[6, 7], [8]]
        shard = prepare_data_loader(loader, num_processes=2, process_index=1)
        assert lists(skip_first_batches(shard, 1)) == [[6, 7], [1, 2]]

    def test_skipping_everything_and_more(self):
        loader = DataLoader(Numbers(4), batch_size=2)
        assert lists(skip_first_batches(loader, 2)) == []
        assert lists(skip_first_batches(loader, 9)) == []
        assert len(skip_first_batches(loader, 9)) == 0

    def test_skips_add_up_and_set_epoch_ends_them(self):
        loader = prepare_data_loader(DataLoader(Numbers(8), batch_size=2))
        twice = skip_first_batches(skip_first_batches(loader, 1), 1)
        twice.set_epoch(3)
        for batch in twice:
            assert batch.tolist() == [4, 5]
            break
        twice.set_epoch(4)
        assert lists(twice)[0] == [0, 1]

    def test_bad_input(self):
        with pytest.raises(PrepareError, match="num_batches=-1 is negative"):
            skip_first_batches(DataLoader(Numbers(4)), -1)
        with pytest.raises(PrepareError, match="list_iterator is not a torch"):
            skip_first_batches(iter([]), 1)


class TestRefusals:
    def test_a_loader_that_is_sharded_already(self):
        sampler = DistributedSampler(Numbers(8), num_replicas=2, rank=0)
        loader = DataLoader(Numbers(8), sampler=sampler)
        with pytest.raises(AlreadyShardedError, match=r"DistributedSampler already gives.*1/2 of the data"):
            prepare_data_loader(loader, num_processes=2, process_index=0, sharding="global")
        hidden = DataLoader(Numbers(8), batch_sampler=BatchSampler(sampler, 2, False))
        with pytest.raises(PrepareError, match="dispatch_batches=True needs the whole data"):
            prepare_data_loader(hidden, num_processes=2, process_index=0, dispatch_batches=True)
        with pytest.raises(PrepareError, match=r"made for rank 0 of 2, but this is rank 0 of 1"):
            prepare_data_loader(loader)
        assert len(lists(prepare_data_loader(loader, num_processes=2, process_index=0))) == 4

    @pytest.mark.parametrize("own", [True, False])
    def test_own_shards_and_samplers_that_know_ranks(self, own):
        if own:
            loader = DataLoader(
                Numbers(8), batch_sampler=BatchSamplerShard(BatchSampler(range(8), 2, False), 2, 0)
            )
        else:
            loader = DataLoader(IterableDatasetShard(Stream(8), 2, False, 2, 0))
        with pytest.raises(AlreadyShardedError, match="already gives each rank its own part"):
            prepare_data_loader(loader, num_processes=2, process_index=0, sharding="global")

    def test_a_prepared_loader(self):
        with pytest.raises(AlreadyShardedError, match="prepared already"):
            prepare_data_loader(prepare_data_loader(DataLoader(Numbers(4))))

    def test_something_else(self):
        with pytest.raises(PrepareError, match=r"a list is not a torch.utils.data.DataLoader"):
            prepare_data_loader([1, 2])

    def test_items_that_are_batches_of_their_own(self):
        with pytest.raises(PrepareError, match="batch_size=None each item"):
            prepare_data_loader(DataLoader(Numbers(4), batch_size=None), num_processes=2, process_index=0)

    @pytest.mark.parametrize("data", [Numbers(8), Stream(8)], ids=["map", "stream"])
    def test_a_batch_size_that_cannot_be_split(self, data):
        loader = DataLoader(data, batch_size=3)
        with pytest.raises(PrepareError, match="batch_size=3 cannot be split into 2 equal parts"):
            prepare_data_loader(loader, num_processes=2, process_index=0, split_batches=True)

    def test_unknown_rng_types(self):
        with pytest.raises(UnknownNameError, match=r"'generatr'. Did you mean 'generator'"):
            prepare_data_loader(DataLoader(Numbers(4)), rng_types=["generatr"])

    def test_batches_out_of_order_when_the_last_is_padded(self):
        loader = DataLoader(Numbers(5), batch_size=2, num_workers=1, in_order=False)
        with pytest.raises(PrepareError, match="in_order=False"):
            prepare_data_loader(loader, num_processes=2, process_index=0)
        prepare_data_loader(loader, num_processes=2, process_index=0, even_batches=False)

    def test_a_stream_whose_loader_iterates_in_its_own_way(self):
        class Own(DataLoader):
            def __iter__(self):
                return (batch * 2 for batch in super().__iter__())

        loader = Own(Stream(4), batch_size=2)
        with pytest.raises(PrepareError, match="Own has an __iter__ of its own"):
            prepare_data_loader(loader, num_processes=2, process_index=0)
        uneven = prepare_data_loader(loader, num_processes=2, process_index=1, even_batches=False)
        assert lists(uneven) == [[4, 6]]

    def test_a_mesh_without_data_parallel_dimension(self):
        class Mesh:
            def __init__(self, names, sizes, coordinate):
                self.mesh_dim_names, self.mesh, self.coordinate = names, torch.zeros(sizes), coordinate

            def get_coordinate(self):
                return self.coordinate

        loader = DataLoader(Numbers(12), batch_size=2)
        mesh = Mesh(("dp_replicate", "dp_shard"), (2, 3), [1, 2])
        assert lists(prepare_data_loader(loader, torch_device_mesh=mesh)) == [[10, 11]]
        with pytest.raises(PrepareError, match="no dimension named dp"):
            prepare_data_loader(loader, torch_device_mesh=Mesh(("tp",), (2,), [0]))
        with pytest.raises(PrepareError, match="beside tp=2"):
            prepare_data_loader(loader, torch_device_mesh=Mesh(("dp", "tp"), (2, 2), [0, 0]))


def test_seedable_sampler_takes_its_seed_from_its_generator_or_the_global_one():
    own = SeedableRandomSampler(range(5), generator=torch.Generator().manual_seed(12))
    assert own.seed == 12
    torch.manual_seed(1)
    drawn = SeedableRandomSampler(range(5)).seed
    torch.manual_seed(1)
    assert SeedableRandomSampler(range(5)).seed == drawn
    assert sorted(own) == [0, 1, 2, 3, 4]


def test_dispatch_on_one_process_is_plain():
    window = GradientWindow()
    loader = prepare_data_loader(
        DataLoader(TensorDataset(torch.arange(5)), batch_size=2), dispatch_batches=True, window=window
    )
    assert isinstance(loader, DataLoaderDispatcher)
    seen = [(batch.tolist(), window.active.end, window.active.remaining) for (batch,) in loader]
    assert seen == [([0, 1], False, 3), ([2, 3], False, 2), ([4], True, 1)]
