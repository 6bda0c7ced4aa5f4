"""Saves in the background by 1 and 2 real processes: committed whole, failed on all, awaited at the end."""

import errno
import os
import signal
import threading
import time

import pytest
import torch

from accel_core.errors import CheckpointError
from accel_state import process, rejoining
from accel_state.checkpoint import BackgroundSaver, CheckpointStore, Files
from accel_state.checkpoint.hashing import digest, written
from accel_state.lastwords import default_store


class Gated(Files):
    """Hold every write back until ``gate`` is open, and fail the writes of one rank where told."""

    def __init__(self, gate=None, fails=False):
        self.gate, self.fails = gate, fails

    def write(self, file, data):
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(file, data)


def saver_of(group=None, gate=None, failing=None):
    """Return a saver whose store waits for ``gate``, and on rank ``failing`` finds the disk full."""
    return BackgroundSaver(
        lambda channel: CheckpointStore(channel, files=Gated(gate, channel.rank == failing)), group
    )


def submit(saver, path, value, **kwargs):
    rank = saver.group.rank
    snapshot = saver.snapshot(path)
    snapshot.tensors(f"rank_{rank}/w", {"w": torch.full((1000,), float(value))})
    snapshot.json(f"rank_{rank}/v", value)
    (snapshot.directory("engine") / f"part_{rank}").write_bytes(bytes([value]))
    saver.submit(path, snapshot, step=value, **kwargs)


def values(path):
    source = CheckpointStore().open(path)
    ranks = range(source.manifest.world_size)
    found = {source.manifest.step, *(source.json(f"rank_{rank}/v") for rank in ranks)}
    for rank in ranks:
        found |= {int(each) for each in source.tensors(f"rank_{rank}/w")["w"].unique()}
        found |= set((source.directory("engine") / f"part_{rank}").read_bytes())
    return found


def names(folder):
    return sorted(each.name for each in folder.iterdir())


# -- one process -----------------------------------------------------------------------------------


def test_the_program_goes_on_and_the_checkpoint_follows(tmp_path):
    gate = threading.Event()
    saver = saver_of(gate=gate)
    done = []
    submit(saver, tmp_path / "one", 1, after=lambda: done.append(names(tmp_path)))
    assert saver.busy
    saver.check()
    assert CheckpointStore().latest(tmp_path) is None
    gate.set()
    saver.wait()
    assert not saver.busy
    assert done == [["one"]]
    assert values(tmp_path / "one") == {1}


def test_one_is_in_flight_and_the_next_waits_for_it(tmp_path):
    gate = threading.Event()
    saver = saver_of(gate=gate)
    submit(saver, tmp_path / "one", 1)
    opener = threading.Timer(0.2, gate.set)
    opener.start()
    # Its memory is that of the first, which must have been written by then.
    submit(saver, tmp_path / "two", 2)
    assert CheckpointStore().listed(tmp_path)[0] == str(tmp_path / "one")
    saver.wait()
    opener.join()
    assert [values(tmp_path / name) for name in ("one", "two")] == [{1}, {2}]


def boundary(saver, most=2000):
    """Return at which check, counted from 1, the failure came, and the failure."""
    for number in range(1, most):
        try:
            saver.check()
        except CheckpointError as error:
            return number, error
        time.sleep(0.005)
    raise AssertionError


def test_a_failure_comes_once_and_the_next_save_works(tmp_path):
    saver = saver_of()
    submit(saver, tmp_path / "one", 1)
    saver.wait()
    broken = saver_of(failing=0)
    submit(broken, tmp_path / "two", 2)
    _, error = boundary(broken)
    assert "No space left" in error.what
    assert f"{tmp_path}/two was not saved" in error.what
    assert error.where.startswith("rank 0 of 1, ")
    assert "free some space" in error.fix
    broken.check()
    broken.wait()
    assert names(tmp_path) == ["one"]
    submit(broken, tmp_path / "three", 3)
    for use in (broken.snapshot, broken.wait):
        # The second finds nothing more to raise.
        if use == broken.snapshot:
            with pytest.raises(CheckpointError, match="three was not saved"):
                use()
        else:
            use()


def test_what_follows_may_fail_too(tmp_path):
    saver = saver_of()
    submit(saver, tmp_path / "one", 1, after=lambda: 1 / 0)
    with pytest.raises(CheckpointError, match="was saved in the background, but what was to follow failed"):
        saver.wait()
    assert values(tmp_path / "one") == {1}


def test_an_interrupt_ends_the_waiting_and_not_the_save(tmp_path):
    gate = threading.Event()
    saver = saver_of(gate=gate)
    submit(saver, tmp_path / "one", 1)
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    # A program that a shell starts in the background ignores interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            saver.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    timer.join()
    assert saver.busy
    gate.set()
    saver.wait()
    assert values(tmp_path / "one") == {1}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_no_save_in_flight(tmp_path):
    gate = threading.Event()
    saver = saver_of(gate=gate)
    submit(saver, tmp_path / "one", 1)
    pid = os.fork()
    if not pid:
        saver.check()
        saver.wait()
        os._exit(0 if not saver.busy else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    gate.set()
    saver.wait()
    assert values(tmp_path / "one") == {1}


def test_memory_is_kept_until_it_is_freed(tmp_path):
    saver = saver_of()
    submit(saver, tmp_path / "one", 1)
    saver.wait()
    assert saver._memory.nbytes == 4000
    saver.free()
    assert saver._memory.nbytes == 0


def test_the_hash_is_of_the_bytes_in_their_order(tmp_path):
    """Large pieces are hashed a little behind the writing, small ones at once."""
    sizes = [10, 300_000, 5, 1_000_000, 400_000, 300_000, 7, 0, 500_000]
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    size, found = written(Files(), tmp_path / "x", iter(map(memoryview, pieces)))
    assert (size, found) == (sum(sizes), digest(b"".join(pieces)))
    assert (tmp_path / "x").read_bytes() == b"".join(pieces)


# -- several ---------------------------------------------------------------------------------------


@pytest.mark.world(2)
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_ranks_save_while_they_exchange(pool, world, tmp_path, debug):
    """The thread's messages and the training's, at the same time: nothing meets what it should not."""

    def run():
        group = process.start().collectives
        saver = saver_of(group)
        for value in range(1, 4):
            submit(saver, tmp_path / f"s{value}", value)
            # All ranks leave the loop at the same time.
            while any(group.all_gather_object(saver.busy)):
                total = group.all_reduce(torch.full((10,), float(value)))[0].item()
                assert total == value * group.world_size
                saver.check()
        saver.wait()

    pool.run(world, run, env={"ACCELERATE_DEBUG_MODE": "1"} if debug else None)
    assert [values(tmp_path / f"s{value}") for value in (1, 2, 3)] == [{1}, {2}, {3}]


@pytest.mark.world(2, 4)
def test_a_full_disk_on_one_rank_fails_all_at_the_same_boundary(pool, world, tmp_path):
    def run():
        group = process.start().collectives
        good = saver_of(group)
        submit(good, tmp_path / "one", 1)
        good.wait()
        saver = saver_of(group, failing=world - 1)
        submit(saver, tmp_path / "two", 2)
        # Ranks are not in step: each comes to its boundaries at a pace of its own.
        for number in range(1, 3000):
            try:
                saver.check()
            except CheckpointError as error:
                again = saver_of(group)
                submit(again, tmp_path / "three", 3)
                again.wait()
                return number, error.what, error.where
            time.sleep(0.001 * (1 + 3 * group.rank))
        raise AssertionError

    found = pool.run(world, run)
    assert len({number for number, _, _ in found}) == 1
    for rank, (_, what, where) in enumerate(found):
        assert "two was not saved in the background" in what
        assert "No space left" in what
        assert (f"Rank {world - 1} could not" in what) is (rank != world - 1)
        assert where.startswith(f"rank {rank} of {world}" if rank == world - 1 else f"rank {world - 1}"), (
            where
        )
    assert names(tmp_path) == ["one", "three"]


@pytest.mark.world(2)
def test_what_follows_fails_on_one_rank(pool, world, tmp_path):
    def run():
        saver = saver_of(process.start().collectives)
        submit(saver, tmp_path / "one", 1, after=(lambda: 1 / 0) if saver.group.rank == 0 else None)
        saver.wait()

    failures = pool.failures(world, run)
    assert all("was saved in the background, but" in str(each) for each in failures), failures
    assert values(tmp_path / "one") == {1}


@pytest.mark.world(2)
def test_leaving_the_group_waits_for_the_save(pool, world, tmp_path):
    def run():
        class Slow(Files):
            def sync(self, file):
                time.sleep(0.1)
                super().sync(file)

        group = process.start().collectives
        saver = BackgroundSaver(lambda channel: CheckpointStore(channel, files=Slow()), group)
        submit(saver, tmp_path / "one", 1)
        assert saver.busy
        process.shutdown()
        assert not saver.busy
        saver.wait()

    pool.run(world, run)
    assert values(tmp_path / "one") == {1}


@pytest.mark.world(2)
def test_a_group_that_is_made_anew_is_taken_up(pool, world, tmp_path):
    """What a search for a batch size that fits does: it leaves the group and meets again."""

    def run():
        state = process.start()
        saver = saver_of(state.collectives)
        store = default_store()
        submit(saver, tmp_path / "one", 1)
        rejoining.leave(state)
        rejoining.rejoin(state, store, "again")
        submit(saver, tmp_path / "two", 2)
        saver.wait()

    pool.run(world, run)
    assert [values(tmp_path / name) for name in ("one", "two")] == [{1}, {2}]


@pytest.mark.world(2)
def test_a_rank_that_is_killed_is_heard_of(pool, world, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "grace", 5)

    def run():
        saver = saver_of(process.start().collectives)
        submit(saver, tmp_path / "one", 1)
        saver.wait()
        snapshot = saver.snapshot(tmp_path / "two")
        if saver.group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        saver.submit(tmp_path / "two", snapshot)
        raise boundary(saver)[1]

    failures = pool.failures(world, run)
    assert isinstance(failures[0], CheckpointError)
    assert "two was not saved in the background" in failures[0].what
    assert "lost a rank" in failures[0].what
    assert failures[0].where.startswith("rank 0 of 2")
    assert CheckpointStore().latest(tmp_path) == str(tmp_path / "one")
