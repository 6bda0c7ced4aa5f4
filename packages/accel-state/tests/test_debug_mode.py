"""Debug mode: every collective is compared first, and a rank that does not come is named with its line."""

import os
import time
from datetime import timedelta

import pytest
import torch

from accel_core.errors import CollectiveError
from accel_state import operations, process
from accel_state.calls import Call, mismatch, table
from accel_state.operations import DistributedOperationException

DEBUG = {"ACCELERATE_DEBUG_MODE": "1"}
SOON = {**DEBUG, "ACCELERATE_DEBUG_TIMEOUT": "1"}
FILE = "test_debug_mode.py:"

RAW = {
    "all_gather": lambda group, rank: group.all_gather(torch.ones(1 + rank)),
    "all_gather without elements": lambda group, rank: group.all_gather(torch.ones(rank)),
    "all_reduce": lambda group, rank: group.all_reduce(torch.ones(1), ("sum", "max")[rank]),
    "broadcast": lambda group, rank: group.broadcast(torch.ones(1), rank),
    "objects": lambda group, rank: group.all_gather_object(1) if rank else group.broadcast_object(1),
    "barrier": lambda group, rank: group.barrier() if rank else group.all_gather_object(1),
    "group": lambda group, rank: group.group([0, 1] if rank else [1, 0]),
}


@pytest.mark.world(2)
@pytest.mark.parametrize("case", RAW)
def test_every_method_of_the_group_is_compared(pool, world, case):
    def run():
        group = process.start().collectives
        with pytest.raises(DistributedOperationException, match="the ranks") as caught:
            RAW[case](group, group.rank)
        assert group.all_gather(torch.tensor(group.rank)).tolist() == [0, 1]
        return str(caught.value)

    for told in pool.run(world, run, env=DEBUG):
        assert told.count(FILE) == 3


@pytest.mark.world(2, 4)
def test_what_agrees_runs_as_without_debug_mode(pool, world):
    def run():
        group = process.start().collectives
        rank = group.rank
        for _ in range(70):  # more than announcements are kept
            assert group.all_gather(torch.tensor(rank)).tolist() == list(range(world))
        assert group.all_reduce(torch.ones(2)).tolist() == [world, world]
        assert group.broadcast(torch.tensor(rank), 1).item() == 1
        assert group.broadcast_object(rank, 1) == 1
        group.barrier()
        part = group.group([1, 0])
        if rank < 2:
            assert part.all_gather_object(rank) == [0, 1]
            assert operations.gather(torch.tensor([rank]), collectives=part).tolist() == [0, 1]
        # Several votes are open at once, and others exchange in between.
        votes = [group.vote(number) for number in range(3)]
        operations.wait_for_everyone()
        assert [vote() for vote in reversed(votes)] == [[number] * world for number in (2, 1, 0)]
        assert votes[0]() == [0] * world

    pool.run(world, run, env=DEBUG)


@pytest.mark.world(2)
def test_one_exchange_from_two_lines_is_two_exchanges(pool, world):
    """Without the line, a call that only one rank makes would be paired with a later one of another rank."""

    def run():
        rank = process.start().topology.rank

        def once():
            operations.gather(torch.ones(1))

        def again():
            operations.gather(torch.ones(1))

        with pytest.raises(DistributedOperationException, match="from different lines"):
            (once if rank else again)()
        # Sending and receiving on different lines is an ordinary way to write a broadcast or a wait.
        if rank == 0:
            operations.broadcast_object_list([1])
            operations.wait_for_everyone()
        else:
            operations.broadcast_object_list([None])
            operations.wait_for_everyone()

    pool.run(world, run, env=DEBUG)


def _one_waits(stay):
    """Rank 0 gathers, rank 1 goes to ``stay``; return what rank 0 is told and how long that took."""
    rank = process.start(timeout=timedelta(seconds=60)).topology.rank
    operations.reduce(torch.ones(1))
    if rank == 1:
        stay()
        return None
    start = time.monotonic()
    with pytest.raises(DistributedOperationException, match="gather waits for rank 1") as caught:
        operations.gather(torch.ones(1))
    return caught.value, time.monotonic() - start


def _compute():
    deadline = time.monotonic() + 6
    while time.monotonic() < deadline:
        sum(range(1000))


@pytest.mark.world(2)
def test_a_rank_that_does_not_come_is_named_with_its_line(pool, world):
    told, seconds = pool.run(world, _one_waits, _compute, env=SOON)[0]
    first, second = told.per_rank
    assert first.startswith("[1] torch.float32, gather at ")
    assert FILE in first
    assert second.startswith("has not come, is at ")
    assert "latest call reduce(mean) at " in second
    assert second.count(FILE) == 2
    # The limit is one second; the rest is for asking the other rank and for a busy machine.
    assert seconds < 30


@pytest.mark.world(2)
def test_a_late_rank_hears_the_same(pool, world):
    def run():
        rank = process.start().topology.rank
        if rank == 1:
            time.sleep(5)
        with pytest.raises(DistributedOperationException, match="gather waits for rank 1"):
            operations.gather(torch.ones(1))
        if rank == 0:
            time.sleep(5)  # it holds the store

    pool.run(world, run, env=SOON)


@pytest.mark.world(2)
def test_a_missing_judge_is_named_too(pool, world):
    """Rank 0 compares for all; without it the others do it themselves."""

    def run():
        if process.start().topology.rank == 0:
            time.sleep(12)
            return ""
        with pytest.raises(DistributedOperationException, match="gather waits for rank 0") as caught:
            operations.gather(torch.ones(1))
        return str(caught.value)

    assert "has not come, is at " in pool.run(world, run, env=SOON)[1]


@pytest.mark.world(2)
def test_a_rank_that_has_left_is_not_waited_for(pool, world):
    def run():
        rank = process.start(timeout=timedelta(seconds=300)).topology.rank
        if rank == 1:
            # What happens at the end of a program, without ending this worker.
            process.current().collectives.board.close()
            return None
        with pytest.raises(DistributedOperationException, match="waits for rank 1") as caught:
            operations.wait_for_everyone()
        return caught.value.per_rank[1]

    # Less than the limits of 60 and 300 s that would have to pass otherwise.
    assert pool.run(world, run, env=DEBUG, timeout=45)[0].startswith("has left")


@pytest.mark.world(2)
def test_a_wait_is_told_of_and_goes_on(pool, world):
    def run():
        rank = process.start().topology.rank
        if rank == 1:
            time.sleep(5)
        operations.wait_for_everyone()
        return operations.gather(torch.tensor(rank)).tolist()

    assert pool.run(world, run, env=SOON) == [[0, 1]] * 2
    assert "wait_for_everyone waits for rank 1" in pool.output[0]
    assert "has not come, is at " in pool.output[0]


@pytest.mark.world(2)
@pytest.mark.parametrize("before", [0, 2])
def test_a_vote_that_one_rank_leaves_out(pool, world, before):
    def run():
        group = process.start(timeout=timedelta(seconds=8)).collectives
        for number in range(before):
            assert group.vote(number)() == [number] * 2
        if group.rank == 0:
            with pytest.raises(DistributedOperationException, match="vote waits for rank 1"):
                group.vote(1)()
        else:
            time.sleep(4)

    pool.run(world, run, env=SOON)


@pytest.mark.world(2)
@pytest.mark.parametrize("first", [False, True])
def test_without_debug_mode_a_timeout_has_a_cause(pool, world, first):
    def run():
        rank = process.start(timeout=timedelta(seconds=3)).topology.rank
        if not first:
            operations.gather(torch.ones(1))
        if rank == 1:
            time.sleep(7)
            return ""
        with pytest.raises(CollectiveError, match="did not finish within 0:00:03") as caught:
            operations.gather(torch.ones(1))
        return caught.value.what

    told = pool.run(world, run)[0]
    assert "- Process 0: gather at " in told
    assert FILE in told
    assert "- Process 1: no word: " in told


@pytest.mark.world(2)
def test_without_debug_mode_ranks_in_different_waits_name_each_other(pool, world):
    """One rank is in a raw reduction, as a backward pass would be, the other in a gather."""

    def run():
        group = process.start(timeout=timedelta(seconds=3)).collectives
        operations.gather(torch.ones(1))
        with pytest.raises(CollectiveError) as caught:
            group.all_reduce(torch.ones(5)) if group.rank else operations.gather(torch.ones(1))
        return caught.value.what

    for told in pool.run(world, run):
        assert "- Process 0: gather at " in told
        assert "- Process 1: all_reduce(sum) at " in told
        assert told.count(FILE) == 2


def test_text_of_a_call_is_read_back_without_running_it():
    call = Call.of("gather", {"a": torch.ones(2, 3), "b": [torch.tensor(1), None]}, one_line=True)
    assert Call.from_text(call.to_text()) == call
    assert FILE in call.line
    assert call.brought() == "['a'] [2, 3] torch.float32, ['b'][0] [] torch.int64, 1 object(s)"
    with pytest.raises((ValueError, SyntaxError)):
        Call.from_text("__import__('os')")


def test_machines_may_keep_the_program_in_different_folders():
    one, other = (Call("gather", (), f"{folder}/train.py:7", one_line=True) for folder in ("/a", "/b/c"))
    assert one.same(lines=True) == other.same(lines=True)
    assert one.same(lines=True) != Call("gather", (), "/a/train.py:8", one_line=True).same(lines=True)
    assert one.digest() == other.digest()


def test_many_ranks_share_lines_of_the_table():
    calls = [Call("gather", (("", (2,), "torch.float32"),), "train.py:7")] * 64
    calls[17] = Call("gather", (("", (3,), "torch.float32"),), "train.py:7")
    told = mismatch(calls, 0).what
    assert "Process 0-16, 18-63: [2] torch.float32" in told
    assert "Process 17: [3] torch.float32" in told
    assert table(["x"] * 3).count("\n") == 2


def test_the_file_of_this_test_is_what_errors_name():
    assert os.path.basename(__file__) + ":" == FILE  # noqa: PTH119
