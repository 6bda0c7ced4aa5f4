"""gather_for_metrics counts each sample once, whoever has how many, and refuses what it cannot know."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

WORLDS = (1, 2, 4)


class Numbers(Dataset[torch.Tensor]):
    def __init__(self, count: int, first: int = 0) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(self.first + index)


class Counter(IterableDataset[torch.Tensor]):
    def __init__(self, count: int, first: int = 0) -> None:
        self.count, self.first = count, first

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(self.first, self.first + self.count))


def share(count: int, rank: int, world: int) -> int:
    """Return how many of ``count`` samples a rank holds: very unequal, and none on some."""
    cuts = [count * place * place // (world * world) for place in range(world + 1)]
    return cuts[rank + 1] - cuts[rank]


def evaluate(cases: list[dict[str, Any]]) -> list[list[list[int]]]:
    """Gather plain, doubled, ragged and named values of every sample; return each list, sorted."""
    from accel import Accelerator
    from accel.utils import DataLoaderConfiguration

    found = []
    for case in cases:
        options = {"even_batches": case["even"], "uneven": case["uneven"], "audit": "off"}
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
        rank, world, count = accelerator.process_index, accelerator.num_processes, case["count"]
        first, sharding, sampler = 0, "global", None
        if case["style"].startswith("own"):
            sharding = "sharded"
            first = sum(share(count, other, world) for other in range(rank))
            count = share(count, rank, world)
        kind = Counter if case["style"] in ("stream", "own stream") else Numbers
        data: Any = kind(count, first)
        if case["style"] == "sampler":
            sharding = "sharded"
            sampler = DistributedSampler(data, world, rank, shuffle=False)
        loader = DataLoader(data, batch_size=case["size"], sampler=sampler)
        loader = accelerator.prepare_data_loader(loader, sharding=sharding)
        lists: list[list[int]] = [[], [], [], []]
        for batch in loader:
            got = accelerator.gather_for_metrics({"x": batch, "twice": [batch.repeat_interleave(2)]})
            lists[0] += got["x"].tolist()
            lists[1] += got["twice"][0].tolist()[::2]
            lists[2] += accelerator.gather_for_metrics([int(i) for i in batch], use_gather_object=True)
            kept = batch[loader.valid_mask]  # type: ignore[attr-defined]
            total = accelerator.reduce(torch.tensor([len(kept)]), reduction="sum")
            lists[3] += [int(total)]
        found.append([sorted(values) for values in lists[:3]] + [lists[3]])
    return found


CASES = st.fixed_dictionaries(
    {
        "count": st.integers(1, 101),
        "size": st.integers(1, 9),
        "style": st.sampled_from(["map", "stream", "own map", "own stream", "sampler"]),
        "even": st.booleans(),
        "uneven": st.sampled_from(["pad_masked", "cycle"]),
    }
)


def possible(case: dict[str, Any], world: int) -> bool:
    # Nothing can be read again where nothing is.
    own = case["style"].startswith("own")
    if case["uneven"] != "cycle":
        return True
    shares = [share(case["count"], rank, world) for rank in range(world)]
    if own:
        return min(shares) > 0
    return bool(case["even"] or case["style"] == "sampler" or case["count"] > case["size"] * (world - 1))


@pytest.mark.parametrize("world", WORLDS)
# Failures name their case, and each example is a call on all ranks: nothing is gained by shrinking.
@settings(max_examples=6, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(cases=st.lists(CASES, min_size=4, max_size=10))
def test_each_sample_once_whatever_the_sizes(world: int, cases: list[dict[str, Any]], pool: Any) -> None:
    cases = [case for case in cases if possible(case, world)]
    if not cases:
        return
    for rank, found in enumerate(pool.run(world, evaluate, cases)):
        for case, (plain, doubled, named, _) in zip(cases, found, strict=True):
            expected = list(range(case["count"]))
            assert plain == expected, f"rank {rank} of {world}, {case}"
            assert doubled == expected, f"rank {rank} of {world}, {case}"
            assert named == expected, f"rank {rank} of {world}, {case}"
    for case, (*_, counted) in zip(cases, found, strict=True):
        if case["uneven"] == "pad_masked":
            assert sum(counted) == case["count"], f"masks of {case}"


@pytest.mark.parametrize("world", [2, 4])
def test_all_sizes_of_data_that_ranks_hold_themselves(world: int, pool: Any) -> None:
    cases = [
        {"count": count, "size": 4, "style": style, "even": True, "uneven": None}
        for count in range(1, 102, 5)
        for style in ("own map", "own stream")
    ]
    for found in pool.run(world, evaluate, cases):
        for case, (plain, doubled, named, _) in zip(cases, found, strict=True):
            assert plain == doubled == named == list(range(case["count"])), case


@pytest.mark.parametrize("world", WORLDS)
def test_stop_all_counts_what_was_read(world: int, pool: Any) -> None:
    cases = [
        {"count": count, "size": 2, "style": "stream", "even": False, "uneven": "stop_all"}
        for count in (1, 8, 9, 16, 17)
    ]
    for found in pool.run(world, evaluate, cases):
        for case, (plain, *_) in zip(cases, found, strict=True):
            full, rest = divmod(case["count"], 2 * world)
            whole = rest > 2 * (world - 1)
            assert plain == list(range(case["count"] if whole else full * 2 * world)), case


# -- ragged ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_may_have_unequal_numbers_of_rows(world: int, pool: Any) -> None:
    def ragged() -> list[tuple[list[list[float]], list[bool], list[str]]]:
        from accel import Accelerator

        accelerator = Accelerator(cpu=True)
        rank, found = accelerator.process_index, []
        for step in range(3):
            rows = torch.full((rank * step, 2), float(rank))
            flags = torch.ones(1 + rank, dtype=torch.bool)
            got = accelerator.gather_for_metrics((rows, flags))
            names = accelerator.gather_for_metrics([f"{rank}.{i}" for i in range(rank)])
            found.append((got[0].tolist(), got[1].tolist(), names))
        return found

    for found in pool.run(world, ragged):
        for step, (rows, flags, names) in enumerate(found):
            assert rows == [[float(rank)] * 2 for rank in range(world) for _ in range(rank * step)]
            assert flags == [True] * sum(range(1, world + 1))
            assert names == [f"{rank}.{i}" for rank in range(world) for i in range(rank)]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (lambda rank: torch.ones(4, 3 + rank), "rank 1: [4, 4] torch.float32"),
        (lambda rank: torch.ones(4, dtype=[torch.float32, torch.float64][rank]), "rank 1: [4] torch.float64"),
        (lambda rank: {"ab"[rank]: torch.ones(4)}, "rank 1: ['b'] [4] torch.float32"),
        (lambda rank: [torch.ones(2)] * (1 - rank), "rank 1: objects"),
    ],
    ids=["width", "dtype", "structure", "objects"],
)
def test_other_differences_raise_on_every_rank(value: Callable[[int], Any], shown: str, pool: Any) -> None:
    def gather() -> None:
        from accel import Accelerator

        accelerator = Accelerator(cpu=True)
        accelerator.gather_for_metrics(value(accelerator.process_index))

    for error in pool.failures(2, gather):
        assert type(error).__name__ == "DataError"
        assert shown in str(error)
        assert "pad_across_processes" in str(error)


def test_values_of_batches_that_are_padding_altogether(pool: Any) -> None:
    """A rank without a real sample has nothing to say, also where values have no rows."""

    def means() -> tuple[list[float], list[str], int]:
        from accel import Accelerator

        accelerator = Accelerator(cpu=True)
        for batch in accelerator.prepare(DataLoader(Numbers(4), batch_size=4)):
            mean = accelerator.gather_for_metrics(batch.float().mean()).tolist()
            words = accelerator.gather_for_metrics("word" + str(accelerator.process_index))
            arrays = accelerator.gather_for_metrics({"a": batch}, use_gather_object=True)
        return mean, words, len(arrays)

    assert pool.run(2, means) == [([1.5], ["word0"], 1)] * 2


# -- several loops ---------------------------------------------------------------------------------


def loops(body: str, world: int, pool: Any) -> list[Any]:
    """Run ``body`` on the pool, with accelerator ``a``, loaders ``short`` (6 samples) and ``long`` (14)."""

    def run() -> Any:
        from accel import Accelerator

        a = Accelerator(cpu=True)
        space: dict[str, Any] = {
            "a": a,
            "gather": a.gather_for_metrics,
            "short": a.prepare(DataLoader(Numbers(6), batch_size=4)),
            "long": a.prepare(DataLoader(Counter(14, 100), batch_size=4)),
            "out": [],
            "torch": torch,
        }
        exec(inspect.cleandoc(body), space)
        return space["out"]

    result: list[Any] = pool.run(world, run)
    return result


SIDE_BY_SIDE = {
    "named": """
        for x, y in zip(short, long):
            out.append((gather(x + 0, loader=short).tolist(), gather(y + 0, loader=long).tolist()))
        """,
    "of the batch": """
        for x, y in zip(short, long):
            out.append((gather(x).tolist(), gather({"y": y[:]})["y"].tolist()))
        """,
    "other order": """
        for y, x in zip(long, short):
            out.append((gather(x).tolist(), gather(y).tolist()))
        """,
    "by hand": """
        first, second = iter(short), iter(long)
        while (x := next(first, None)) is not None:
            y = next(second)
            out.append((gather(x).tolist(), gather(y).tolist()))
        """,
    "endless second": """
        second = iter(long)
        for x in short:
            y = next(second)
            out.append((gather(x).tolist(), gather(y).tolist()))
        """,
    "in generators": """
        def passed(loader):
            for batch in loader:
                yield batch
        for x, y in zip(passed(short), passed(long)):
            out.append((gather(x).tolist(), gather(y).tolist()))
        """,
}


@pytest.mark.parametrize("body", SIDE_BY_SIDE.values(), ids=SIDE_BY_SIDE)
@pytest.mark.parametrize("world", WORLDS)
def test_loaders_side_by_side(body: str, world: int, pool: Any) -> None:
    for out in loops(body, world, pool):
        assert [value for x, _ in out for value in x] == list(range(6))
        steps = -(-6 // (4 * world))
        assert [value for _, y in out for value in y] == list(range(100, 100 + min(14, 4 * world * steps)))


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("loop", ["zip(short, long)", "zip(long, short)", "zip(passed(short), passed(long))"])
def test_values_whose_loader_is_not_known_are_refused(world: int, loop: str, pool: Any) -> None:
    body = f"""
        def passed(loader):
            yield from loader
        try:
            for x, y in {loop}:
                out.append(gather(x * 1))
        except Exception as error:
            out[:] = [str(error)]
        """
    for out in loops(body, world, pool):
        assert "loaders run side by side" in out[0]
        assert "loader=that_loader" in out[0]


NESTED = {
    "plain": """
        for x in short:
            inner = []
            for y in long:
                inner += gather(y * 1).tolist()
            out.append((gather(x * 1).tolist(), inner))
        """,
    "function": """
        def evaluate():
            return [value for y in long for value in gather(y * 1).tolist()]
        for x in short:
            inner = evaluate()
            out.append((gather(x * 1).tolist(), inner))
        """,
    "generators": """
        def passed(loader):
            for number, batch in enumerate(loader):
                yield batch
        def evaluate():
            for y in passed(long):
                yield gather(y * 1).tolist()
        for x in passed(short):
            inner = [value for values in evaluate() for value in values]
            out.append((gather(x * 1).tolist(), inner))
        """,
}


@pytest.mark.parametrize("body", NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("world", WORLDS)
def test_loops_in_loops(body: str, world: int, pool: Any) -> None:
    for out in loops(body, world, pool):
        assert [value for x, _ in out for value in x] == list(range(6))
        assert all(inner == list(range(100, 114)) for _, inner in out)


WRONG = {
    "after the loop": (
        """
        for x in short:
            value = x * 1
        gather(value)
        """,
        "outside of a loop",
    ),
    "after a loop left early": (
        """
        for x in short:
            if a.gradient_state.end_of_dataloader:
                break
        gather(x)
        """,
        "outside of a loop",
    ),
    "after zip": (
        """
        for x, y in zip(short, long):
            pass
        gather(x)
        """,
        "outside of a loop",
    ),
    "held back, tensors of the batch": (
        """
        held = None
        for y in long:
            if held is not None:
                gather(held)
            held = y
        """,
        "of the batch before",
    ),
    "held back, computed": (
        """
        held = None
        for y in long:
            if held is not None:
                gather(held)
            held = y * 1
        gather(held)
        """,
        "outside of a loop",
    ),
    "collected": (
        """
        values = []
        for y in long:
            values.append(y)
            if a.gradient_state.end_of_dataloader:
                gather(torch.cat(values))
        """,
        "collected over several batches",
    ),
    "collected objects": (
        """
        values = []
        for y in long:
            values += [str(int(i)) for i in y]
            if a.gradient_state.end_of_dataloader:
                gather(values, use_gather_object=True)
        """,
        "collected over several batches",
    ),
    "collected in an inner loop": (
        """
        for x in long:
            gather(torch.cat([y for y in short] * 3))
        """,
        "collected over several batches",
    ),
    "a loader that is not running": ("gather(torch.ones(4), loader=short)", "no batch in hand"),
}


@pytest.mark.parametrize(("body", "text"), WRONG.values(), ids=WRONG)
def test_wrong_use_is_refused_on_every_rank(body: str, text: str, pool: Any) -> None:
    indented = "\n    ".join(inspect.cleandoc(body).splitlines())
    guarded = f"try:\n    {indented}\nexcept Exception as error:\n    out.append(str(error))\n"
    # Two ranks: `long` has two rounds, the second with padding; `short` has one.
    for out in loops(guarded, 2, pool):
        assert len(out) == 1
        assert text in out[0]


RIGHT = {
    "after a loop without padding": """
        for x in a.prepare(torch.utils.data.DataLoader(list(range(16)), batch_size=4)):
            pass
        out.append(len(gather(x)))
        """,
    "before any loop": "out.append(len(gather(torch.ones(4))))",
    "as many rows as they come to be, from the start": """
        for number, y in enumerate(long):
            got = gather(torch.ones(3 + number)) if number == 0 else None
        for number, y in enumerate(short):
            for z in long:
                pass
            out.append(len(gather(y * 1, loader=short)) + 2)
        """,
    "several rows a sample from the start": """
        got = [gather(y.repeat_interleave(3)) for y in long]
        out.append(sum(map(len, got)) - 34)
        """,
}


@pytest.mark.parametrize("body", RIGHT.values(), ids=RIGHT)
def test_right_use_stays_right(body: str, pool: Any) -> None:
    assert loops(body, 2, pool) == [[8]] * 2


def test_a_step_that_another_rank_does_not_take_is_told_at_once(pool: Any) -> None:
    def run() -> tuple[list[list[int]], str]:
        from accel import Accelerator
        from accel.utils import DataLoaderConfiguration

        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(even_batches=False))
        seen = []
        try:
            for batch in accelerator.prepare(DataLoader(Numbers(9), batch_size=2)):
                seen.append(accelerator.gather_for_metrics(batch).tolist())
        except RuntimeError as error:
            return seen, f"{type(error).__name__}: {error}"
        return seen, ""

    # No timeout is waited for: rank 1 has left, and rank 0 knows.
    zero, one = pool.run(2, run, timeout=30)
    assert zero[0] == one[0] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert zero[1].startswith("UnevenDataError: rank 1 has no batch in this step")
    assert "even_batches=True" in zero[1]
    assert one[1] == ""
