"""Finding a batch size on several ranks: all retry alike, wherever they were when one had no memory left."""

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from accel_core.errors import CapabilityError, CollectiveError
from accel_state import find_executable_batch_size, operations, process

OOM = "CUDA out of memory. Tried to allocate 20.00 MiB."
PLACES = (
    "before anything",
    "beside an all_reduce",
    "beside a vote",
    "in backward",
    "at the end",
    "everywhere",
)


def full():
    raise torch.OutOfMemoryError(OOM)


def _step(model, size, place, fails):
    """Go through exchanges of every kind; run out of memory at ``place``."""
    if place in {"before anything", "everywhere"} and fails:
        full()
    group = process.current().collectives
    if place == "beside an all_reduce" and fails:
        full()
    total = operations.reduce(torch.tensor(1.0), "sum")
    if place == "beside a vote" and fails:
        full()
    assert group.vote(size)() == [size] * group.world_size
    loss = model(torch.ones(size, 8)).square().mean()
    if place == "in backward" and fails:
        loss.register_hook(lambda gradient: full())
    loss.backward()
    operations.gather_object("after")
    if place == "at the end" and fails:
        full()
    return total.item()


@pytest.mark.world(2)
@pytest.mark.parametrize("place", PLACES)
def test_one_rank_without_memory_makes_all_retry_at_once(pool, world, place):
    all_retry(pool, world, place)


@pytest.mark.world(4)
def test_one_rank_of_four_without_memory(pool, world):
    all_retry(pool, world, "in backward")


def all_retry(pool, world, place):
    def run():
        state = process.start(timeout=timedelta(seconds=40))
        rank, tried = state.topology.rank, []
        start = time.monotonic()

        @find_executable_batch_size(starting_batch_size=8)
        def train(batch_size):
            tried.append(batch_size)
            layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(6)))
            # Small buckets: some are on their way when memory runs out in the middle of backward.
            model = DistributedDataParallel(layers, bucket_cap_mb=0.0001)
            fails = batch_size > 2 and (rank == world - 1 or place == "everywhere")
            return batch_size, _step(model, batch_size, place, fails)

        assert train() == (2, float(world))
        assert tried == [8, 4, 2]
        # The group that it ends with is whole: every kind of exchange works, and the next call too.
        assert state.collectives.vote(rank)() == list(range(world))
        assert operations.gather(torch.tensor([rank])).tolist() == list(range(world))
        assert operations.gather_object(rank) == list(range(world))
        assert train() == (2, float(world))
        return time.monotonic() - start

    # Nobody waited for a timeout; each of the four retries could have cost one.
    assert all(seconds < 40 for seconds in pool.run(world, run))


@pytest.mark.world(2)
def test_what_memory_held_is_gone_on_every_rank(pool):
    def run():
        import weakref

        rank = process.start().topology.rank
        alive = []

        @find_executable_batch_size(starting_batch_size=4)
        def train(batch_size):
            assert all(each() is None for each in alive)
            model = DistributedDataParallel(nn.Linear(8, 8))
            alive.append(weakref.ref(model))
            loss = model(torch.ones(batch_size, 8)).sum()
            if rank == 1 and batch_size > 1:
                full()
            loss.backward()
            return batch_size

        return train(), len(alive)

    assert pool.run(2, run) == [(1, 3), (1, 3)]


@pytest.mark.world(2)
def test_no_size_fits_says_so_on_all_ranks(pool):
    def run():
        rank = process.start().topology.rank

        @find_executable_batch_size(starting_batch_size=2)
        def train(batch_size):
            if rank == 0:
                full()
            operations.reduce(torch.ones(1))

        train()

    for error in pool.failures(2, run):
        assert isinstance(error, CapabilityError)
        assert "No executable batch size found, reached zero: train" in str(error)
        assert "batch sizes tried: 2, 1" in str(error)


@pytest.mark.world(2)
def test_another_error_passes_untouched_and_is_named_to_ranks_that_wait(pool):
    def run():
        rank = process.start().topology.rank

        @find_executable_batch_size(starting_batch_size=2)
        def train(batch_size):
            if rank == 0:
                raise KeyError("lost")

        train()

    first, second = pool.failures(2, run)
    assert type(first) is KeyError
    assert isinstance(second, CollectiveError)
    assert "Rank 0 left train with KeyError: 'lost'" in str(second)


@pytest.mark.world(2)
def test_an_error_of_an_exchange_is_not_taken_for_memory(pool):
    def run():
        rank = process.start(timeout=timedelta(seconds=2)).topology.rank

        @find_executable_batch_size(starting_batch_size=2)
        def train(batch_size):
            if rank == 0:
                operations.reduce(torch.ones(1))
            else:
                time.sleep(4)

        train()

    first, second = pool.failures(2, run)
    assert "did not finish within 0:00:02" in str(first)
    assert "Rank 0 left train with CollectiveError" in str(second)


@pytest.mark.world(2)
def test_ranks_that_try_different_sizes_are_told(pool):
    def run():
        rank = process.start().topology.rank
        find_executable_batch_size(lambda batch_size: None, starting_batch_size=8 + rank)()

    for error in pool.failures(2, run):
        assert isinstance(error, CollectiveError)
        assert "with batch size 8; rank 1: <lambda> with batch size 9" in str(error)


@pytest.mark.world(2)
def test_a_rank_that_does_not_call_it(pool):
    def run():
        rank = process.start(timeout=timedelta(seconds=1)).topology.rank
        if rank == 0:
            find_executable_batch_size(lambda batch_size: None)()
        else:
            time.sleep(3)

    first, second = pool.failures(2, run)
    assert "rank 1 did not begin <lambda> with batch size 128 within 1 s" in str(first)
    assert second is None


@pytest.mark.world(2)
@pytest.mark.parametrize("debug", [False, True])
def test_in_a_group_of_the_program_ranks_that_stand_together_retry(pool, debug):
    """Debug mode too: such groups are not replaced."""

    def run():
        if not debug:
            dist.init_process_group("gloo")
        process.start()
        group = dist.group.WORLD

        @find_executable_batch_size(starting_batch_size=4)
        def train(batch_size):
            operations.gather_object(1)
            if batch_size > 2:
                full()
            return batch_size, operations.reduce(torch.ones(1), "sum").item()

        return train(), dist.group.WORLD is group

    env = {"ACCELERATE_DEBUG_MODE": "1"} if debug else None
    assert pool.run(2, run, env=env) == [((2, 2.0), True)] * 2


@pytest.mark.world(2)
def test_in_a_group_of_the_program_ranks_that_stand_apart_are_told_why_not(pool):
    def run():
        dist.init_process_group("gloo", timeout=timedelta(seconds=3))
        rank = process.start().topology.rank

        @find_executable_batch_size(starting_batch_size=4)
        def train(batch_size):
            if rank == 1:
                full()
            operations.gather(torch.ones(1))

        train()

    for error in pool.failures(2, run, timeout=60):
        assert isinstance(error, CollectiveError), error
        assert "the process group was made by the program" in str(error)
        assert "out of memory" in str(error) or "different points" in str(error)


@pytest.mark.world(2)
def test_a_model_kept_outside_is_told_instead_of_hanging_the_others(pool):
    def run():
        rank = process.start(timeout=timedelta(seconds=30)).topology.rank
        kept = []

        @find_executable_batch_size(starting_batch_size=4)
        def train(batch_size):
            kept.append(DistributedDataParallel(nn.Linear(2, 2)))
            if rank == 1:
                full()
            operations.gather_object(1)

        try:
            train()
        finally:
            kept.clear()

    start = time.monotonic()
    first, second = pool.failures(2, run, timeout=60)
    assert "still held by DistributedDataParallel" in str(second), second
    assert first is not None
    assert time.monotonic() - start < 30


@pytest.mark.world(2)
def test_generators_start_every_attempt_alike(pool):
    def run():
        rank = process.start().topology.rank

        def train(batch_size, limit):
            drawn = torch.rand(1).item()
            operations.reduce(torch.ones(1))
            if rank == 1 and batch_size > limit:
                full()
            return drawn, torch.rand(1).item()

        torch.manual_seed(3)
        after_three = find_executable_batch_size(train, starting_batch_size=4)(1)
        torch.manual_seed(3)
        return after_three == find_executable_batch_size(train, starting_batch_size=4)(4)

    assert pool.run(2, run) == [True, True]
