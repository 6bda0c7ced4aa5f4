"""Wrong use is a clear error on every rank: never a hang, never a silent change of the data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset


def start(**options: Any) -> Any:
    from accel import Accelerator

    return Accelerator(cpu=True, **options)


def unknown_precision() -> None:
    start(mixed_precision="fp61")


def precision_of_a_later_version() -> None:
    start(mixed_precision="fp8")


def missing_feature() -> None:
    start(fsdp_plugin=object())


def same_object_twice() -> None:
    model = nn.Linear(2, 2)
    start().prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), model)


def foreign_optimizer() -> None:
    model, copy = nn.Linear(2, 2), nn.Linear(2, 2)
    start().prepare(model, torch.optim.SGD(copy.parameters(), lr=0.1))


def foreign_optimizer_later() -> None:
    accelerator = start()
    accelerator.prepare(nn.Linear(2, 2))
    accelerator.prepare(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))


def orphan_scheduler() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    start().prepare(torch.optim.lr_scheduler.StepLR(optimizer, 1))


def wrapper_of_before() -> None:
    accelerator = start()
    model = nn.Linear(2, 2)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    accelerator.free_memory()
    accelerator.prepare(optimizer)


def scheduler_of_before() -> None:
    accelerator = start()
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    _, scheduler = accelerator.prepare(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1))
    accelerator.free_memory()
    accelerator.prepare_scheduler(scheduler)


def zero_steps() -> None:
    start(gradient_accumulation_steps=0)


def two_numbers_of_steps() -> None:
    from accel.utils import GradientAccumulationPlugin

    start(gradient_accumulation_steps=2, gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=4))


def wrong_handler() -> None:
    start(kwargs_handlers=[{"find_unused_parameters": True}])


def second_set_up() -> None:
    start(mixed_precision="bf16")
    start(mixed_precision="no")


def meta_model() -> None:
    start().prepare(nn.Linear(2, 2, device="meta"))


CASES: list[tuple[Callable[[], None], str, str]] = [
    (unknown_precision, "UnknownNameError", "'fp61'"),
    (precision_of_a_later_version, "CapabilityError", "fp8"),
    (missing_feature, "CapabilityError", "fsdp_plugin"),
    (same_object_twice, "PrepareError", "argument 0 and argument 2"),
    (foreign_optimizer, "PrepareError", "belongs to no prepared model"),
    (foreign_optimizer_later, "PrepareError", "belongs to no prepared model"),
    (orphan_scheduler, "PrepareError", "optimizer of StepLR was not prepared"),
    (wrapper_of_before, "PrepareError", "was prepared by another Accelerator"),
    (scheduler_of_before, "PrepareError", "the attribute .scheduler holds it"),
    (zero_steps, "ConfigError", "num_steps"),
    (two_numbers_of_steps, "ConfigError", "contradicts GradientAccumulationPlugin(num_steps=4)"),
    (wrong_handler, "ConfigError", "kwargs_handlers[0]"),
    (second_set_up, "StateError", "mixed_precision"),
    (meta_model, "PrepareError|CapabilityError", "meta"),
]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("wrong", "kind", "text"), CASES, ids=[case[0].__name__ for case in CASES])
def test_wrong_use_is_named(world: int, wrong: Callable[[], None], kind: str, text: str, pool: Any) -> None:
    errors = pool.failures(world, wrong)
    assert len(errors) == world
    for error in errors:
        assert type(error).__name__ in kind.split("|"), repr(error)
        assert text in str(error)


def test_unknown_precision_has_the_nearest_name(pool: Any) -> None:
    (error,) = pool.failures(1, unknown_precision)
    assert error.nearest == "fp16"


def test_a_loader_that_is_sharded_already_is_not_divided_again(pool: Any) -> None:
    def loader(accelerator: Any, rank: int) -> DataLoader[Any]:
        data = TensorDataset(torch.arange(10))
        sampler: Any = DistributedSampler(data, accelerator.num_processes, rank)
        return DataLoader(data, sampler=sampler)

    def kept() -> list[int]:
        accelerator = start()
        prepared = accelerator.prepare(loader(accelerator, accelerator.process_index))
        return [int(batch[0]) for batch in prepared]

    def divided() -> None:
        accelerator = start()
        accelerator.prepare_data_loader(loader(accelerator, accelerator.process_index), sharding="global")

    def wrong() -> None:
        accelerator = start()
        accelerator.prepare(loader(accelerator, 0))

    ranks = pool.run(2, kept)
    assert sorted(ranks[0] + ranks[1]) == list(range(10))
    for error in pool.failures(2, divided):
        assert type(error).__name__ == "AlreadyShardedError"
        assert "DistributedSampler" in str(error)
    assert "made for rank 0 of 2, but this is rank 1 of 2" in str(pool.failures(2, wrong)[1])


def test_data_that_every_rank_has_cut_before_are_found_in_the_first_batches(pool: Any) -> None:
    def cut(mode: str) -> int:
        from accel.utils import DataLoaderConfiguration

        config = DataLoaderConfiguration(audit=mode)
        accelerator = start(dataloader_config=config)
        mine = TensorDataset(torch.arange(40)[accelerator.process_index :: accelerator.num_processes])
        return len(list(accelerator.prepare(DataLoader(mine))))

    for error in pool.failures(2, cut, "first_batches"):
        assert type(error).__name__ == "AuditError"
        assert "double-sharded" in str(error)
    assert pool.run(2, cut, "off") == [10, 10]


@pytest.mark.parametrize("world", [1, 2])
def test_skip_first_batches(pool: Any, world: int) -> None:
    def skip() -> tuple[list[int], list[int], bool]:
        accelerator = start()
        loader = accelerator.prepare(DataLoader(TensorDataset(torch.arange(12)), batch_size=2))
        rest = [int(batch[0][0]) for batch in accelerator.skip_first_batches(loader, num_batches=1)]
        same = len(accelerator.skip_first_batches(loader)) == len(loader)
        return [int(batch[0][0]) for batch in loader], rest, same

    for everything, rest, same in pool.run(world, skip):
        assert rest == everything[1:]
        assert same


def test_preparing_again_returns_what_the_first_time_made(pool: Any) -> None:
    def again() -> list[bool]:
        accelerator = start()
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        loader = DataLoader(TensorDataset(torch.arange(4)))
        originals = (model, optimizer, scheduler, loader)
        made = accelerator.prepare(*originals)
        return [
            a is b
            for again in (originals, made)
            for a, b in zip(made, accelerator.prepare(*again), strict=True)
        ]

    for world in (1, 2):
        for same in pool.run(world, again):
            assert same == [True] * 8


def test_any_order_and_foreign_objects(pool: Any) -> None:
    def mixed() -> list[str]:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        loader = DataLoader(TensorDataset(torch.arange(4)))
        notes = {"mine": 1}
        result = start().prepare(scheduler, notes, loader, optimizer, model)
        assert result[1] is notes
        return [type(thing).__name__ for thing in result]

    assert pool.run(1, mixed)[0] == [
        "AcceleratedScheduler",
        "dict",
        "DataLoaderShard",
        "AcceleratedOptimizer",
        "Linear",
    ]
    assert pool.run(2, mixed)[0][4] == "SharedModel"


def test_a_batch_without_tensors_passes_through(pool: Any) -> None:
    def words() -> list[Any]:
        loader = start().prepare(DataLoader(["a", "b", "c", "d"], batch_size=2))  # type: ignore[arg-type]
        return list(loader)

    assert pool.run(1, words)[0] == [["a", "b"], ["c", "d"]]
    assert pool.run(2, words) == [[["a", "b"]], [["c", "d"]]]


class Ragged(IterableDataset[torch.Tensor]):
    """A stream that ends earlier on rank 1: each rank opened a file of its own, say."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(self.count))


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_that_end_at_different_steps_are_an_error_on_every_rank(workers: int, pool: Any) -> None:
    def uneven() -> None:
        accelerator = start()
        count = 24 if accelerator.process_index != 1 else 12
        for batch in accelerator.prepare(DataLoader(Ragged(count), batch_size=3, num_workers=workers)):
            accelerator.reduce(batch.float().sum())

    for error in pool.failures(2, uneven):
        assert type(error).__name__ == "UnevenDataError"
        assert error.ended == (1,)


def test_an_optimizer_over_two_models_is_accepted(pool: Any) -> None:
    def joint() -> int:
        accelerator = start()
        first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        optimizer = torch.optim.SGD(itertools.chain(first.parameters(), second.parameters()), lr=0.1)
        first, second, optimizer = accelerator.prepare(first, second, optimizer)
        accelerator.backward((first(torch.ones(1, 2)) + second(torch.ones(1, 2))).sum())
        optimizer.step()
        return len(optimizer.param_groups[0]["params"])

    assert pool.run(2, joint) == [4, 4]


def test_a_device_that_is_not_here_is_named() -> None:
    from accel_core.errors import CapabilityError
    from accel_state import process
    from accel_state.devices.cuda import CudaDevice

    if CudaDevice().available():
        pytest.skip("this machine has CUDA devices")
    with pytest.raises(CapabilityError, match="'cuda' cannot be used"):
        process.start(device="cuda")


def test_a_gather_on_one_rank_beside_a_backward_on_the_other_is_named_on_both(pool: Any) -> None:
    """Nothing announces torch's own reductions: what the ranks say is where each stopped in the end."""

    def part_ways() -> str:
        from datetime import timedelta

        from accel.utils import InitProcessGroupKwargs

        patience = InitProcessGroupKwargs(backend="gloo", timeout=timedelta(seconds=3))
        accelerator = start(kwargs_handlers=[patience])
        model = accelerator.prepare(nn.Linear(2, 1))
        loss = model(torch.ones(4, 2)).sum()
        try:
            if accelerator.is_main_process:
                accelerator.gather(torch.ones(1))
            accelerator.backward(loss)
        except CollectiveError as error:
            return str(error)
        return "nothing was raised"

    from accel_core.errors import CollectiveError

    first, second = pool.run(2, part_ways, timeout=60)
    assert "gather" in first
    assert "backward" in second
    # Who hears of the other depends on who gives up first; each says where it stands itself.
    assert "Where the ranks stopped" in first
    assert "Where the ranks stopped" in second
    assert "backward at" in first or "gather" in second
