"""Operations across real processes, and the debug mode that turns a hang into an error."""

import time
from datetime import timedelta

import pytest
import torch

from accel_core.errors import DataError
from accel_state import operations, process
from accel_state.operations import DistributedOperationException

DEBUG = {"ACCELERATE_DEBUG_MODE": "1"}


@pytest.mark.world(1, 2, 4)
@pytest.mark.parametrize("debug", [False, True])
def test_gather_joins_in_rank_order(pool, world, debug):
    def run():
        rank = process.start().topology.rank
        got = operations.gather(
            {"a": [torch.full((2, 3), rank), torch.tensor(float(rank))], "b": (torch.tensor([rank > 0]),)}
        )
        assert got["a"][0].shape == (2 * world, 3)
        return got["a"][0][:, 0].tolist(), got["a"][1].tolist(), got["b"][0].tolist()

    expected = (
        [rank for rank in range(world) for _ in range(2)],
        [float(rank) for rank in range(world)],
        [rank > 0 for rank in range(world)],
    )
    assert pool.run(world, run, env=DEBUG if debug else None) == [expected] * world


@pytest.mark.world(1, 2, 4)
def test_reduce_equals_torchs_own(pool, world):
    def run():
        process.start()
        rank = process.current().topology.rank
        own = {"x": torch.arange(3.0, dtype=torch.float64) * (rank + 1), "n": torch.tensor(rank)}
        return [
            operations.reduce(own, kind, scale)
            for kind, scale in (("sum", 1.0), ("mean", 2.0), ("none", 1.0))
        ]

    total = sum(range(1, world + 1))
    base = torch.arange(3.0, dtype=torch.float64)
    for rank, (summed, mean, none) in enumerate(pool.run(world, run)):
        # Small whole numbers: exact in float64.
        assert summed["x"].equal(base * total)
        assert summed["n"].item() == sum(range(world))
        assert mean["x"].equal(base * total / world * 2)
        assert mean["n"].item() == 2 * sum(range(world)) / world
        assert none["x"].equal(base * (rank + 1))


@pytest.mark.world(2, 4)
def test_broadcast_and_objects(pool, world):
    def run():
        rank = process.start().topology.rank
        last = world - 1
        assert operations.broadcast([torch.tensor([rank])], from_process=last)[0].item() == last
        items = [rank, f"from {rank}"]
        assert operations.broadcast_object_list(items, from_process=last) is items
        assert items == [last, f"from {last}"]
        assert operations.gather_object([rank] * rank) == [
            other for other in range(world) for _ in range(other)
        ]
        assert operations.gather_object({"rank": rank}) == [{"rank": other} for other in range(world)]
        operations.wait_for_everyone()

    pool.run(world, run)


@pytest.mark.world(2, 4)
@pytest.mark.parametrize("first", [False, True])
def test_padding_makes_unequal_tensors_gatherable(pool, world, first):
    def run():
        rank = process.start().topology.rank
        own = {"ids": torch.full((2, rank + 1), rank), "flat": torch.ones(rank), "scalar": torch.tensor(1.0)}
        padded = operations.pad_across_processes(own, dim=1, pad_index=-100, pad_first=first)
        assert padded["flat"] is own["flat"]
        assert padded["scalar"] is own["scalar"]
        assert padded["ids"].shape == (2, world)
        assert operations.pad_across_processes(own["ids"], dim=-1).shape == (2, world)
        return operations.gather(padded["ids"])

    for got in pool.run(world, run):
        for rank in range(world):
            row = [rank] * (rank + 1)
            rest = [-100] * (world - rank - 1)
            assert got[2 * rank].tolist() == (rest + row if first else row + rest)


def _bad_gather():
    rank = process.start(timeout=timedelta(seconds=60)).topology.rank
    started = time.monotonic()
    with pytest.raises(DistributedOperationException) as caught:
        operations.gather({"a": torch.ones(1, 5) if rank == 0 else torch.ones(1, 2, 5)})
    return str(caught.value), caught.value.per_rank, time.monotonic() - started


@pytest.mark.world(2)
def test_debug_mode_reports_unequal_shapes_on_every_rank(pool, world):
    for told, per_rank, _ in pool.run(world, _bad_gather, env=DEBUG):
        assert "Operation: `gather`" in told
        assert "- Process 0: ['a'] [1, 5] torch.float32" in told
        assert "- Process 1: ['a'] [1, 2, 5] torch.float32" in told
        assert told.count("test_operations_distributed.py:") >= 2
        assert per_rank == ("['a'] [1, 5] torch.float32", "['a'] [1, 2, 5] torch.float32")


CASES = {
    "other dtype": lambda rank: operations.reduce(torch.ones(1, dtype=[torch.float32, torch.float64][rank])),
    "other structure": lambda rank: operations.broadcast([torch.ones(1)] * (rank + 1)),
    "other operation": lambda rank: (operations.gather if rank else operations.reduce)(torch.ones(1)),
    "tensor against object": lambda rank: (
        operations.gather_object([1]) if rank else operations.gather(torch.ones(1))
    ),
    "other length of list": lambda rank: operations.broadcast_object_list([None] * (rank + 1)),
    "padding along different dimensions": lambda rank: operations.pad_across_processes(
        torch.ones(2, 2), dim=rank
    ),
    "padding more dimensions": lambda rank: operations.pad_across_processes(torch.ones([2] * (1 + rank))),
    "waiting or not": lambda rank: (
        operations.wait_for_everyone() if rank else operations.gather(torch.ones(1))
    ),
    "other source": lambda rank: operations.broadcast(torch.ones(1), from_process=rank),
    "more than fits into one message": lambda rank: operations.gather(torch.ones(1 + 5000 * rank)),
}


@pytest.mark.world(2)
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_disagreement_is_reported(pool, world, case, debug):
    def run():
        rank = process.start().topology.rank
        with pytest.raises(DistributedOperationException, match="the ranks") as caught:
            CASES[case](rank)
        # Nothing is left half done: the next exchange works.
        assert operations.gather(torch.tensor(rank)).tolist() == [0, 1]
        return caught.value.what

    told = pool.run(world, run, env=DEBUG if debug else None)
    for text in told:
        assert text.count("test_operations_distributed.py:") == 2
    # Alike but for the name of the own operation.
    assert told[0].partition("Input shapes:")[2] == told[1].partition("Input shapes:")[2]


@pytest.mark.world(2)
@pytest.mark.parametrize("size", [1, 5000])
def test_values_too_long_for_the_first_message_take_the_longer_way(pool, world, size):
    def run():
        rank = process.start().topology.rank
        own = {"x": torch.arange(size) + rank, "h": torch.full((2,), rank, dtype=torch.bfloat16)}
        assert operations.gather(own)["x"].equal(torch.cat([torch.arange(size), torch.arange(size) + 1]))
        assert operations.reduce(own, "sum")["x"].equal(2 * torch.arange(size) + 1)
        assert operations.reduce(own, "mean")["h"].equal(torch.full((2,), 0.5, dtype=torch.bfloat16))
        assert operations.reduce(own, "max")["x"].equal(torch.arange(size) + 1)
        assert operations.broadcast(own, 1)["x"].equal(torch.arange(size) + 1)
        assert operations.gather_object(["a" * size * (1 + rank)]) == ["a" * size, "a" * size * 2]
        box = ["b" * size if rank else None]
        assert operations.broadcast_object_list(box, 1) == ["b" * size]
        # Only one rank has a long value: all must notice.
        assert len(operations.gather_object(["c" * (1 if rank else size)])) == 2
        result = operations.reduce(own["x"], "sum")
        result.zero_()
        assert own["x"].equal(torch.arange(size) + rank)

    pool.run(world, run)


@pytest.mark.world(2)
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("size", [1, 5000])
def test_mappings_are_exchanged_by_key(pool, world, debug, size):
    """In the order of its keys, a rank would get the other's "b" as its "a"."""

    def run():
        rank = process.start().topology.rank
        own = {key: torch.full((size,), ord(key)) for key in ("ab" if rank else "ba")}
        for got in (operations.gather(own), operations.reduce(own, "max"), operations.broadcast(own)):
            assert list(got) == list(own)
            assert all((value == ord(key)).all() for key, value in got.items())
        ragged = {key: torch.ones(size, 1 + (key == "b")) for key in ("ab" if rank else "ba")}
        padded = operations.pad_across_processes(ragged, dim=1)
        assert [padded[key].shape[1] for key in "ab"] == [1, 2]

    pool.run(world, run, env=DEBUG if debug else None)


@pytest.mark.world(2)
def test_every_dtype_travels_in_the_first_message(pool, world):
    dtypes = [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16]
    dtypes += [torch.float64, torch.complex64, torch.float8_e4m3fn]

    def run():
        rank = process.start().topology.rank
        group = process.current().collectives
        for dtype in dtypes:
            own = torch.tensor([[0, 1], [1, rank]]).to(torch.float32).to(dtype).t()
            got = operations.gather(own)
            want = group.all_gather(own).flatten(0, 1)
            assert got.dtype == want.dtype == dtype
            assert got.view(torch.uint8).equal(want.view(torch.uint8))
            if dtype.is_complex or (dtype.itemsize == 1 and dtype.is_floating_point):
                continue
            for op in ("sum", "mean", "max", "min"):
                small, raw = operations.reduce(own, op), group.all_reduce(own, op)
                assert small.dtype == raw.dtype, (dtype, op)
                assert small.equal(raw), (dtype, op)
        assert operations.gather(torch.empty(0, 3)).shape == (0, 3)
        assert operations.reduce({}, "sum") == {}

    pool.run(world, run)


@pytest.mark.world(2)
def test_an_object_that_cannot_be_pickled_is_named(pool, world):
    def run():
        process.start()
        with pytest.raises(DataError, match="gather_object takes objects that can be pickled, not function"):
            operations.gather_object(lambda: None)
        with pytest.raises(DataError, match="broadcast_object_list takes objects that can be pickled"):
            operations.broadcast_object_list([lambda: None], process.current().topology.rank)

    pool.run(world, run)


def test_a_tuple_cannot_be_filled():
    with pytest.raises(DataError, match="changes a list in place, got tuple"):
        operations.broadcast_object_list((1,))


@pytest.mark.world(4)
def test_a_part_of_the_ranks(pool, world):
    def run():
        whole = process.start().collectives
        pairs = [whole.group([0, 1]), whole.group([2, 3])]
        mine = pairs[whole.rank // 2]
        return operations.gather(torch.tensor([whole.rank]), collectives=mine).tolist()

    assert pool.run(world, run) == [[0, 1], [0, 1], [2, 3], [2, 3]]
