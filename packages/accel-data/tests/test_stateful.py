"""Saving and loading the position through torchdata."""

import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from accel_core.errors import DataError, NotInstalledError, PrepareError
from accel_core.window import GradientWindow
from accel_data import DataLoaderShard, prepare_data_loader


class Numbers(Dataset):
    def __len__(self):
        return 23

    def __getitem__(self, index):
        return torch.tensor(index)


class Stream(IterableDataset):
    """A stream that keeps its own position."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        while self.position < 23:
            self.position += 1
            yield self.position - 1
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Counting(IterableDataset):
    """A stream that keeps no position."""

    def __iter__(self):
        return iter(range(23))


def lists(loader):
    return [batch.tolist() for batch in loader]


def test_without_torchdata_the_line_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdata.stateful_dataloader", None)
    with pytest.raises(NotInstalledError, match="pip install torchdata"):
        prepare_data_loader(DataLoader(Numbers()), use_stateful_dataloader=True)


class TestWithTorchdata:
    @pytest.fixture(autouse=True)
    def torchdata(self):
        return pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("world", [1, 2])
    @pytest.mark.parametrize("kind", ["plain", "shuffle", "generator", "stream"])
    def test_a_new_loader_goes_on_after_the_batch_in_hand(self, kind, world, workers, torchdata):
        if kind == "stream" and (world, workers) == (2, 2):
            workers = 1

        def make():
            generator = torch.Generator().manual_seed(5) if kind == "generator" else None
            shuffle = None if kind == "stream" else kind != "plain"
            loader = DataLoader(
                Stream() if kind == "stream" else Numbers(),
                batch_size=3,
                shuffle=shuffle,
                generator=generator,
                num_workers=workers,
            )
            window = GradientWindow()
            prepared = prepare_data_loader(
                loader, num_processes=world, process_index=0, use_stateful_dataloader=True, window=window
            )
            assert isinstance(prepared, (torchdata.StatefulDataLoader, DataLoaderShard))
            assert isinstance(prepared, torchdata.StatefulDataLoader)
            return prepared, window

        loader, window = make()
        first = lists(loader)
        states, rest, cursors = [], [], []
        for batch in loader:
            states.append(loader.state_dict())
            rest.append(batch.tolist())
            cursors.append((window.active.end, window.active.remaining, window.active.valid))
        following = lists(loader)
        assert [state["batches"] for state in states] == list(range(1, len(rest) + 1))
        assert len(first) == len(rest)
        for done in (1, 2, len(rest)):
            other, window = make()
            other.load_state_dict(states[done - 1])
            assert other.state_dict()["batches"] == done
            seen = []
            for batch in other:
                seen.append((batch.tolist(), window.active.end, window.active.remaining, window.active.valid))
            assert [item[0] for item in seen] == rest[done:]
            assert [item[1:] for item in seen] == cursors[done:]
            assert lists(other) == following

    def test_between_epochs(self):
        loader = DataLoader(Numbers(), batch_size=4, shuffle=True)
        first = prepare_data_loader(loader, use_stateful_dataloader=True)
        lists(first)
        state = first.state_dict()
        assert (state["epoch"], state["batches"]) == (1, 0)
        second = prepare_data_loader(loader, use_stateful_dataloader=True)
        second.load_state_dict(state)
        assert lists(second) == lists(first)

    @pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
    def test_a_users_stateful_loader_is_counted_exactly_too(self, torchdata):
        loader = prepare_data_loader(torchdata.StatefulDataLoader(Numbers(), batch_size=5))
        running = iter(loader)
        next(running)
        state = loader.state_dict()
        other = prepare_data_loader(torchdata.StatefulDataLoader(Numbers(), batch_size=5))
        other.load_state_dict(state)
        assert next(iter(other)).tolist() == [5, 6, 7, 8, 9]

    def test_a_subclass_of_the_users_stays_one(self):
        class Own(DataLoader):
            tag = "own"

        loader = prepare_data_loader(Own(Numbers(), batch_size=12), use_stateful_dataloader=True)
        assert isinstance(loader, Own)
        assert len(lists(loader)) == 2

    @pytest.mark.parametrize(
        ("kind", "world", "workers"),
        [
            *[
                (kind, w, 0)
                for w in (1, 2)
                for kind in ("plain", "shuffle", "generator", "stream", "counting")
            ],
            *[(kind, 1, 2) for kind in ("shuffle", "counting")],
        ],
    )
    def test_positions_go_through_torchdatas_state(self, kind, world, workers):
        def make():
            generator = torch.Generator().manual_seed(5) if kind == "generator" else None
            data = {"stream": Stream, "counting": Counting}.get(kind, Numbers)()
            shuffle = kind != "plain" if isinstance(data, Numbers) else None
            loader = DataLoader(data, batch_size=3, shuffle=shuffle, generator=generator, num_workers=workers)
            return prepare_data_loader(
                loader,
                num_processes=world,
                process_index=world - 1,
                use_stateful_dataloader=True,
                data_seed=1,
            )

        loader = make()
        lists(loader)
        positions, whole = [], []
        for batch in loader:
            positions.append(loader.position())
            whole.append(batch.tolist())
        following = lists(loader)
        for done in (1, 3, len(whole)):
            other = make()
            other.resume_at(positions[done - 1])
            assert other.iteration == 1
            again = []
            for batch in other:
                again.append(batch.tolist())
                third = other.position()
            assert again == whole[done:]
            assert lists(other) == following
            if again:
                assert third == third | {"epoch": 1, "ended": True}

    @pytest.mark.parametrize("kind", ["shuffle", "counting"])
    def test_on_other_ranks_positions_are_samples_of_the_whole(self, kind):
        def make(world, rank, size):
            data = Counting() if kind == "counting" else Numbers()
            loader = DataLoader(data, batch_size=size, shuffle=True if kind == "shuffle" else None)
            return prepare_data_loader(
                loader, num_processes=world, process_index=rank, use_stateful_dataloader=True, data_seed=1
            )

        whole = [value for batch in make(1, 0, 1) for value in batch.tolist()]
        loaders = [make(2, rank, 2) for rank in range(2)]
        running = [iter(loader) for loader in loaders]
        for each in (*running, *running):
            next(each)
        position = loaders[0].position()
        assert position["samples"] == 8
        assert position["loader"] is not None
        alone = make(1, 0, 3)
        alone.resume_at(position)
        running = iter(alone)
        assert [value for _ in range(2) for value in next(running).tolist()] == whole[8:14]
        second = alone.position()
        assert (second["samples"], second["origin"]) == (14, 8)
        again = make(1, 0, 3)
        again.resume_at(second)
        assert [value for batch in again for value in batch.tolist()] == whole[14:]
        parts = [make(4, rank, 1) for rank in range(4)]
        for part in parts:
            part.resume_at(second)
        steps = zip(*map(lists, parts), strict=True)
        assert [value for step in steps for batch in step for value in batch][:9] == whole[14:]

    def test_a_position_replaces_a_loaded_state_and_the_other_way_round(self):
        loader = prepare_data_loader(DataLoader(Numbers(), batch_size=4), use_stateful_dataloader=True)
        whole, states = [], []
        for batch in loader:
            whole.append(batch.tolist())
            states.append((loader.state_dict(), loader.position()))
        loader.load_state_dict(states[0][0])
        with pytest.raises(DataError, match="has not been gone on with yet"):
            loader.position()
        loader.resume_at(states[2][1])
        assert lists(loader) == whole[3:]
        loader.resume_at(states[2][1])
        loader.load_state_dict(states[0][0])
        assert lists(loader) == whole[1:]

    def test_bad_states_are_refused(self):
        loader = prepare_data_loader(DataLoader(Numbers()), use_stateful_dataloader=True)
        with pytest.raises(DataError, match="lacks batches, ended, epoch"):
            loader.load_state_dict({"seed": 1})
        with pytest.raises(DataError, match="saved on 4 processes, this is 1"):
            loader.load_state_dict(loader.state_dict() | {"num_processes": 4})

    def test_dispatched_loaders_are_refused(self):
        with pytest.raises(PrepareError, match="position of a dispatched loader"):
            prepare_data_loader(DataLoader(Numbers()), use_stateful_dataloader=True, dispatch_batches=True)
