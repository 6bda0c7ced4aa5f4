"""Rows of all ranks are joined alike, whether they travel with the question or on their own."""

import pytest
import torch

pytest.importorskip("accel")

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.bool, torch.complex64]
# Few enough to travel with the question on all ranks; too many on all; on some only.
ROWS = ([2, 2], [3, 1], [0, 4], [0, 0], [500, 500], [300, 2], [1, 0, 5, 2], [400, 1, 0, 400])


def values(rank, rows):
    made = torch.Generator().manual_seed(rank)
    found = {
        str(dtype): torch.randint(0, 2, (rows, 3), generator=made).to(dtype).transpose(0, 1).contiguous().t()
        for dtype in DTYPES
    }
    return {**found, "flat": torch.arange(rows) + 1000 * rank, "narrow": torch.zeros(rows, 0)}


def join(rows):
    from accel import Accelerator

    accelerator = Accelerator(cpu=True)
    group = accelerator._strategy.batches
    before = group.comparisons
    joined = accelerator.gather_for_metrics(values(group.rank, rows[group.rank]))
    return joined, group.comparisons - before


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_rows_of_all_ranks_in_rank_order(pool, rows):
    expected = [values(rank, count) for rank, count in enumerate(rows)]
    for joined, exchanges in pool.run(len(rows), join, rows):
        assert exchanges == 1
        for name, leaf in joined.items():
            wanted = torch.cat([each[name] for each in expected])
            assert (leaf.dtype, leaf.shape) == (wanted.dtype, wanted.shape)
            assert torch.equal(leaf, wanted)
            # Nobody else's memory, and may be written to.
            leaf.zero_()


def unlike(rows):
    from accel import Accelerator
    from accel_core.errors import DataError

    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    with pytest.raises(DataError, match="ranks may have unequal numbers") as caught:
        accelerator.gather_for_metrics(torch.zeros(rows, 3 + rank))
    # And the ranks are still together.
    return str(caught.value), accelerator.gather_for_metrics(torch.tensor([rank])).tolist()


@pytest.mark.parametrize("rows", [2, 500])
def test_rows_of_unlike_form_are_an_error_on_every_rank(pool, rows):
    for text, after in pool.run(2, unlike, rows):
        assert f"[{rows}, 3]" in text
        assert f"[{rows}, 4]" in text
        assert after == [0, 1]
