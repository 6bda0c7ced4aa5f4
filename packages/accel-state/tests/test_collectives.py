"""Every dtype and shape over real groups of gloo workers, sub-groups, votes, and refusals."""

import pytest
import torch

from accel_core.errors import CollectiveError
from accel_state import operations, process
from accel_state.dtypes import result_dtype, wire_dtype

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
]


def _mine(rank, dtype, shape=(2, 3)):
    """Different values on every rank, all of them exact in every dtype."""
    base = torch.arange(torch.Size(shape).numel()).reshape(shape)
    return ((base + rank) % 4).to(torch.float32).to(dtype)


def _same(one, other):
    """Compare bytes: some of these dtypes have no comparison of their own."""
    one, other = one.contiguous(), other.contiguous()
    return one.dtype == other.dtype and one.view(torch.uint8).equal(other.view(torch.uint8))


@pytest.mark.world(2, 4)
def test_gather_and_broadcast_carry_every_dtype_bit_for_bit(pool, world):
    def run():
        group = process.start().collectives
        for dtype in DTYPES:
            # Transposed: not contiguous.
            own = _mine(group.rank, dtype).t()
            expected = torch.stack([_mine(rank, dtype).t() for rank in range(world)])
            gathered = group.all_gather(own)
            assert gathered.dtype == dtype
            assert _same(gathered, expected)
            got = group.broadcast(own, world - 1)
            last = _mine(world - 1, dtype).t()
            assert got.dtype == dtype
            assert _same(got, last)
            assert _same(own, _mine(group.rank, dtype).t())

    pool.run(world, run)


@pytest.mark.world(2, 4)
def test_reductions_equal_torchs_own_on_the_stacked_tensors(pool, world):
    def run():
        group = process.start().collectives
        for dtype in DTYPES:
            stacked = torch.stack([_mine(rank, dtype) for rank in range(world)])
            wide = stacked.to(torch.complex128 if dtype.is_complex else torch.float64)
            for op in ("sum", "mean", "max", "min"):
                if dtype.is_complex and op in {"max", "min"}:
                    with pytest.raises(CollectiveError, match="no order|have no"):
                        group.all_reduce(stacked[0], op)
                    continue
                own = stacked[group.rank]
                before = own.clone()
                got = group.all_reduce(own, op)
                reduce = {"sum": wide.sum, "mean": wide.mean, "max": wide.amax, "min": wide.amin}[op]
                # The values are small multiples of 1/4: exact in every dtype but the eight-bit one's mean.
                expected = reduce(0).to(result_dtype(dtype, op))
                assert got.dtype == expected.dtype, (dtype, op)
                assert got.to(wide.dtype).equal(expected.to(wide.dtype)), (dtype, op, got, expected)
                assert own.to(wide.dtype).equal(before.to(wide.dtype))

    pool.run(world, run)


@pytest.mark.world(2)
def test_half_precision_is_reduced_in_float32(pool, world):
    """The sum of two times 60000 is beyond float16, their mean is not."""

    def run():
        group = process.start().collectives
        own = torch.tensor([60000.0], dtype=torch.float16)
        return group.all_reduce(own, "mean").item(), group.all_reduce(own).item()

    assert pool.run(world, run) == [(60000.0, float("inf"))] * 2


@pytest.mark.world(2)
def test_shapes_without_elements_and_without_dimensions(pool, world):
    def run():
        group = process.start().collectives
        assert group.all_gather(torch.empty(0, 5)).shape == (2, 0, 5)
        assert group.all_reduce(torch.empty(0, dtype=torch.bfloat16)).shape == (0,)
        assert group.broadcast(torch.empty(3, 0)).shape == (3, 0)
        assert group.all_gather(torch.tensor(group.rank)).tolist() == [0, 1]
        assert group.all_reduce(torch.tensor(True)).item() == 2
        assert group.broadcast(torch.tensor(float(group.rank)), 1).item() == 1.0

    pool.run(world, run)


@pytest.mark.world(2)
def test_results_carry_no_gradient_and_leave_the_input_alone(pool, world):
    def run():
        group = process.start().collectives
        own = torch.ones(2, requires_grad=True)
        for result in (group.all_gather(own), group.all_reduce(own), group.broadcast(own, 1)):
            assert not result.requires_grad
        # A result is the caller's to change.
        group.all_reduce(own).zero_()
        assert own.tolist() == [1.0, 1.0]

    pool.run(world, run)


@pytest.mark.world(2, 4)
def test_objects_and_votes(pool, world):
    def run():
        group = process.start().collectives
        rank = group.rank
        assert group.all_gather_object({"rank": rank}) == [{"rank": other} for other in range(world)]
        assert group.broadcast_object("x" * (rank + 1), world - 1) == "x" * world
        # Several open at once, read in another order than asked, with reductions in between.
        first, second = group.vote(rank), group.vote(-rank)
        assert group.all_reduce(torch.ones(3)).tolist() == [float(world)] * 3
        assert second() == [-other for other in range(world)]
        assert first() == list(range(world))
        assert first() == list(range(world))

    pool.run(world, run)


@pytest.mark.world(4)
def test_groups_and_groups_of_groups(pool, world):
    def run():
        whole = process.start().collectives
        rank = whole.rank
        halves = [whole.group([0, 1]), whole.group([2, 3])]
        mine = halves[rank // 2]
        assert (mine.rank, mine.world_size, mine.timeout) == (rank % 2, 2, whole.timeout)
        assert mine.all_gather(torch.tensor([rank])).flatten().tolist() == [rank // 2 * 2, rank // 2 * 2 + 1]
        assert mine.broadcast_object(rank, 1) == rank // 2 * 2 + 1
        assert mine.vote(rank)() == [rank // 2 * 2, rank // 2 * 2 + 1]
        # Made within one half only: the other half does not call it and must not be waited for.
        if rank < 2:
            alone = mine.group([1])
            assert alone.rank == (0 if rank == 1 else -1)
            assert mine.group([1, 0]).all_gather(torch.tensor(rank)).sum().item() == 1
        other = halves[1 - rank // 2]
        assert other.rank == -1
        with pytest.raises(CollectiveError, match="not in the group of ranks"):
            other.barrier()
        whole.barrier()
        # Some ranks are in more groups than others by now; channels of the whole world open all the same.
        assert whole.vote(rank)() == list(range(world))
        assert operations.gather(torch.tensor(rank)).tolist() == list(range(world))

    pool.run(world, run)


@pytest.mark.world(2)
def test_bad_requests_name_what_is_wrong(pool, world):
    def run():
        group = process.start().collectives
        with pytest.raises(CollectiveError, match="Unknown reduction 'prod'"):
            group.all_reduce(torch.ones(1), "prod")
        with pytest.raises(CollectiveError, match="no rank 2 in a group of 2"):
            group.broadcast(torch.ones(1), 2)
        with pytest.raises(CollectiveError, match="no rank -1"):
            group.broadcast_object(1, -1)
        for members in ([], [0, 0], [0, 2], [-1]):
            with pytest.raises(CollectiveError, match="different ranks from 0 to 1"):
                group.group(members)

    pool.run(world, run)


def test_wire_and_result_dtypes():
    assert wire_dtype(torch.bfloat16, through_gloo=True) is torch.float32
    assert wire_dtype(torch.bfloat16, through_gloo=False) is torch.bfloat16
    assert wire_dtype(torch.float8_e5m2, through_gloo=False) is torch.float32
    assert wire_dtype(torch.bool, through_gloo=False) is torch.uint8
    assert result_dtype(torch.bool, "sum") is torch.int64
    assert result_dtype(torch.bool, "max") is torch.bool
    assert result_dtype(torch.int32, "mean") is torch.get_default_dtype()
    assert result_dtype(torch.int32, "sum") is torch.int32
