"""Saves by 1, 2 and 4 real processes: each rank writes its own; all succeed, or all fail with one cause."""

import os
import signal

import pytest
import torch

from accel_core.errors import CheckpointError
from accel_core.testing import WorkerDiedError
from accel_state import process
from accel_state.checkpoint import CheckpointStore

pytestmark = pytest.mark.world(1, 2, 4)


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def store():
    return CheckpointStore(process.start().collectives)


def write(sink, rank, value):
    sink.tensors(f"rank_{rank}/shard", {"w": torch.full((rank + 1, 10), float(value))})
    sink.json(f"rank_{rank}/rng", {"value": value, "rank": rank})
    folder = sink.directory("engine")
    (folder / f"part_{rank}.bin").write_bytes(bytes([value]) * (rank + 1))
    if rank == 0:
        sink.json("run", {"value": value})


def save(path, value=1):
    own = store()
    with own.save(path, step=value) as sink:
        write(sink, own.group.rank, value)
    return names(path.parent)


def check(path, world, value):
    source = CheckpointStore().open(path)
    assert (source.manifest.world_size, source.manifest.step) == (world, value)
    assert len(source.names()) == 2 * world + 2
    for rank in range(world):
        assert source.tensors(f"rank_{rank}/shard")["w"].equal(torch.full((rank + 1, 10), float(value)))
        assert source.json(f"rank_{rank}/rng") == {"value": value, "rank": rank}
        assert (source.directory("engine") / f"part_{rank}.bin").read_bytes() == bytes([value]) * (rank + 1)


def test_every_rank_writes_its_own(pool, world, tmp_path):
    # When commit returns, every rank sees the checkpoint and nothing else.
    assert pool.run(world, save, tmp_path / "one") == [["one"]] * world
    check(tmp_path / "one", world, 1)
    assert pool.run(world, save, tmp_path / "one", 2) == [["one"]] * world
    check(tmp_path / "one", world, 2)


def test_any_number_of_ranks_reads_what_others_wrote(pool, world, tmp_path):
    pool.run(2, save, tmp_path / "one")

    def read():
        own = store()
        source = own.open_together(tmp_path / "one")
        return sorted(source.names()), source.tensors("rank_1/shard")["w"].sum().item()

    found = pool.run(world, read)
    assert (
        found
        == [(["engine", "rank_0/rng", "rank_0/shard", "rank_1/rng", "rank_1/shard", "run"], 20.0)] * world
    )


def damaged(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_damage_that_one_rank_finds_is_skipped_by_all(pool, world, tmp_path):
    for value in (1, 2, 3):
        pool.run(world, save, tmp_path / f"s{value}", value)
    damaged(tmp_path / "s3" / "engine" / "part_0.bin")
    damaged(tmp_path / "s2" / f"rank_{world - 1}" / "shard.safetensors")

    def read():
        return store().open_latest_together(tmp_path).path.name

    assert pool.run(world, read) == ["s1"] * world
    failures = pool.failures(world, lambda: store().open_together(tmp_path / "s3"))
    assert all(isinstance(each, CheckpointError) and "engine/part_0.bin" in str(each) for each in failures)
    assert pool.run(world, lambda: store().open_latest_together(tmp_path / "nowhere")) == [None] * world


@pytest.mark.parametrize("when", ["writing", "block", "json"])
def test_an_error_on_one_rank_fails_all_with_its_cause(pool, world, tmp_path, when):
    pool.run(world, save, tmp_path / "one")

    def fail():
        own = store()
        last = own.group.rank == world - 1
        with own.save(tmp_path / "one") as sink:
            write(sink, own.group.rank, 2)
            if last and when == "writing":
                (sink.directory("links") / "x").symlink_to("/etc/hostname")
            if last and when == "block":
                raise ZeroDivisionError("the cause")
            if last and when == "json":
                sink.json("bad", {1, 2})

    failures = pool.failures(world, fail)
    cause = {"writing": "no links", "block": "the cause", "json": "value is a set"}[when]
    for rank, error in enumerate(failures):
        assert cause in str(error), error
        own = rank == world - 1
        assert isinstance(error, ZeroDivisionError if when == "block" and own else CheckpointError)
        if not own and when != "writing":
            assert f"Rank {world - 1} could not" in str(error)
    assert names(tmp_path) == ["one"]
    check(tmp_path / "one", world, 1)
    assert pool.run(world, save, tmp_path / "one", 3) == [["one"]] * world
    check(tmp_path / "one", world, 3)


def test_a_save_that_cannot_begin_fails_on_all(pool, world, tmp_path):
    (tmp_path / "file").write_text("x")
    failures = pool.failures(world, save, tmp_path / "file")
    assert all(isinstance(each, CheckpointError) and "a file of this name" in str(each) for each in failures)
    assert names(tmp_path) == ["file"]


def test_all_give_up_together(pool, world, tmp_path):
    def give_up():
        own = store()
        sink = own.begin(tmp_path / "one")
        write(sink, own.group.rank, 1)
        own.abort(sink)
        return names(tmp_path)

    assert pool.run(world, give_up) == [[]] * world


@pytest.mark.world(2, 4)
def test_a_name_that_two_ranks_write_is_named(pool, world, tmp_path):
    def twice():
        own = store()
        with own.save(tmp_path / "one") as sink:
            # Another kind: the file systems sees no clash.
            (sink.json("same", 1) if own.group.rank else sink.tensors("same", {}))
            if own.group.rank > 1:
                raise AssertionError("only the first two write")

    failures = pool.failures(2, twice)
    assert all("Ranks 0 and 1 both wrote 'same'" in str(each) for each in failures)

    def same_file():
        own = store()
        with own.save(tmp_path / "one") as sink:
            sink.json("same", own.group.rank)

    failures = pool.failures(world, same_file)
    assert all(isinstance(each, CheckpointError) and "same.json" in str(each) for each in failures)
    assert names(tmp_path) == []


@pytest.mark.world(2, 4)
@pytest.mark.parametrize("victim", ["first", "last"])
def test_a_rank_that_dies_leaves_the_old_checkpoint(pool, world, tmp_path, victim):
    pool.run(world, save, tmp_path / "one")

    def die():
        own = store()
        sink = own.begin(tmp_path / "one")
        write(sink, own.group.rank, 2)
        if own.group.rank == (0 if victim == "first" else world - 1):
            os.kill(os.getpid(), signal.SIGKILL)
        own.commit(sink)

    failures = pool.failures(world, die)
    assert isinstance(failures[0 if victim == "first" else -1], WorkerDiedError)
    assert None not in failures
    check(tmp_path / "one", world, 1)
    assert pool.run(world, save, tmp_path / "two", 2) == [["one", "two"]] * world
    check(tmp_path / "two", world, 2)


@pytest.mark.world(2)
def test_ranks_on_different_disks_are_told(pool, world, tmp_path, monkeypatch):
    def elsewhere():
        from accel_state.checkpoint import store as module

        module._PATIENCE = 0.2
        own = store()
        if own.group.rank == 1:
            # What this rank would see if the folder were on the other's disk.
            real = module.Path.is_dir
            module.Path.is_dir = lambda path, **kwargs: (
                ".accel-writing-" not in str(path) and real(path, **kwargs)
            )
        try:
            save(tmp_path / "one")
        finally:
            if own.group.rank == 1:
                module.Path.is_dir = real
            module._PATIENCE = 10.0

    failures = pool.failures(world, elsewhere)
    assert all(
        isinstance(each, CheckpointError) and "different file systems" in str(each) for each in failures
    )
    assert names(tmp_path) == []
