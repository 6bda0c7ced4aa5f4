"""Named units: what may be given, what comes back, and what is refused with its name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from accel import Accelerator
from accel_core.errors import PrepareError, UnknownNameError
from accel_state import process

pytestmark = pytest.mark.cpu


def network(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(2, 2)


def sgd(*models: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for model in models for p in model.parameters()], lr=0.1)


def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    process.reset()


# -- what comes back -----------------------------------------------------------------------------------------


def test_units_come_back_by_name_and_in_order(accelerator: Accelerator) -> None:
    first, second, reference = network(1), network(2), network(3)
    opt, other = sgd(first), sgd(second)
    slow = schedule(opt)
    units = accelerator.prepare(actor=(first, opt, slow), critic=[other, second], reference=reference)
    actor, actor_optimizer, actor_schedule = units.actor
    critic_optimizer, critic = units["critic"]
    (frozen,) = units.reference
    assert (actor, critic, frozen) == (units.actor.model, units.critic.model, units.reference.model)
    assert (actor_optimizer, actor_schedule) == (units.actor.optimizer, units.actor.scheduler)
    assert critic_optimizer is units.critic.optimizer
    assert actor_optimizer.optimizer is opt
    assert actor_schedule.scheduler is slow
    assert [unit.name for unit in units] == ["actor", "critic", "reference"]
    assert len(units) == 3
    assert {"actor", "critic", "reference"} <= set(dir(units))
    assert repr(units) == "PreparedUnits(actor, critic, reference)"
    assert repr(units.actor) == "PreparedUnit(name='actor')"
    assert [unit.name for unit in accelerator._registry.units] == ["actor", "critic", "reference"]


def test_they_stand_after_what_has_no_name(accelerator: Accelerator) -> None:
    first, second, plain = network(1), network(2), network(3)
    both = sgd(first, second)
    loader = DataLoader(torch.ones(4, 2))  # type: ignore[arg-type]
    kept, optimizer, model, units = accelerator.prepare("kept", both, plain, a=(first, loader), b=second)
    assert kept == "kept"
    assert optimizer.optimizer is both  # type: ignore[attr-defined]
    assert units.a.loader is accelerator._registry.loaders[0]
    assert [unit.name for unit in accelerator._registry.units] == ["model_0", "a", "b"]
    # What was prepared comes back as it is, with or without its name.
    again, same = accelerator.prepare(model, a=first)
    assert again is model
    assert same.a.model is units.a.model
    assert accelerator.prepare(second) is units.b.model


def test_a_unit_may_grow(accelerator: Accelerator) -> None:
    model = network()
    first = accelerator.prepare(actor=model)
    optimizer = sgd(model)
    second = accelerator.prepare(actor=(first.actor.model, optimizer))
    assert second.actor.optimizer.optimizer is optimizer
    assert accelerator._registry.named["actor"].parts == second.actor.parts


def test_placement_is_given_for_units_last(pool: Any) -> None:
    def places() -> list[bool]:
        accelerator = Accelerator(cpu=True)
        first, second = network(1), network(2)
        opt, plain = accelerator.prepare(sgd(first), first, device_placement=[False, True])
        _, units = accelerator.prepare(plain, b=(second, sgd(second)), device_placement=[True, True, False])
        return [opt.device_placement, units.b.optimizer.device_placement]  # type: ignore[attr-defined]

    assert pool.run(1, places) == [[False, False]]


def test_free_memory_frees_the_names(accelerator: Accelerator) -> None:
    accelerator.prepare(actor=network(1))
    accelerator.free_memory()
    assert accelerator.prepare(actor=network(2)).actor.name == "actor"


@pytest.mark.world(2)
def test_a_frozen_model_has_no_container(pool: Any) -> None:
    def kinds() -> list[bool]:
        accelerator = Accelerator(cpu=True)
        actor, reference = network(1), network(2).requires_grad_(False)
        units = accelerator.prepare(actor=(actor, sgd(actor)), reference=reference)
        assert units.reference.model is reference
        return [isinstance(unit.model, DistributedDataParallel) for unit in units]

    assert pool.run(2, kinds) == [[True, False]] * 2


# -- what is refused -----------------------------------------------------------------------------------------


def refused(accelerator: Accelerator, *args: Any, **units: Any) -> str:
    with pytest.raises(PrepareError) as caught:
        accelerator.prepare(*args, **units)
    # Nothing was prepared.
    assert not accelerator._registry.units
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "Unit 'actor' was given None"),
        ((network(), None), r"Unit 'actor' was given None.\n  where: prepare(actor=...), part 1"),
        (3, "Unit 'actor' was given a int"),
        ({"model": network()}, "Unit 'actor' was given a dict"),
        ((), "Unit 'actor' was given no model"),
        (sgd(network()), "Unit 'actor' was given no model"),
        ((network(), network()), "Unit 'actor' was given 2 models"),
    ],
    ids=str,
)
def test_what_is_no_unit(accelerator: Accelerator, given: Any, said: str) -> None:
    assert said.replace(r"\n", "\n") in refused(accelerator, actor=given)


@pytest.mark.parametrize("name", ["_actor", "model_0", "a b", "", "1st"])
def test_what_is_no_name(accelerator: Accelerator, name: str) -> None:
    assert f"A unit cannot be called {name!r}" in refused(accelerator, **{name: network()})


def test_one_object_in_two_units(accelerator: Accelerator) -> None:
    model = network()
    said = refused(accelerator, actor=model, critic=(model,))
    assert "the same Linear twice.\n  where: unit 'actor' and unit 'critic'" in said
    assert "where: argument 0 and unit 'actor'" in refused(accelerator, model, actor=model)


def test_an_optimizer_of_another_model(accelerator: Accelerator) -> None:
    first, second = network(1), network(2)
    said = refused(accelerator, actor=(first, sgd(second)), critic=second)
    assert "SGD of unit 'actor' holds a parameter that its model has not" in said
    assert "before the named units" in said
    assert "unit 'actor'" in refused(accelerator, actor=(first, sgd(first, second)), critic=second)


def test_a_scheduler_of_another_unit(accelerator: Accelerator) -> None:
    first, second = network(1), network(2)
    opt, other = sgd(first), sgd(second)
    said = refused(accelerator, actor=(first, opt, schedule(other)), critic=(second, other))
    assert "ExponentialLR of unit 'actor'" in said


def test_names_that_are_taken(accelerator: Accelerator) -> None:
    first = network(1)
    accelerator.prepare(actor=first)
    with pytest.raises(PrepareError, match="There is a unit 'actor' already, with another model"):
        accelerator.prepare(actor=network(2))
    with pytest.raises(PrepareError, match="There is a unit 'actor' already"):
        accelerator.prepare(Actor=network(2))
    with pytest.raises(PrepareError, match="was prepared before, as unit 'actor'"):
        accelerator.prepare(critic=first)
    plain = network(3)
    accelerator.prepare(plain)
    with pytest.raises(PrepareError, match="was prepared before, as unit 'model_1'"):
        accelerator.prepare(critic=plain)
    assert list(accelerator._registry.named) == ["actor"]


def test_asking_for_what_is_not_there(accelerator: Accelerator) -> None:
    model = network()
    units = accelerator.prepare(actor=(model, sgd(model), sgd(model)))
    with pytest.raises(AttributeError, match="no unit is called 'critic'; there are: actor"):
        _ = units.critic
    with pytest.raises(UnknownNameError, match="Did you mean 'actor'"):
        _ = units["actr"]
    with pytest.raises(PrepareError, match=r"has 2 optimizers(.|\n)*use \.optimizers"):
        _ = units.actor.optimizer
    with pytest.raises(PrepareError, match=r"has no scheduler(.|\n)*give one to prepare\(actor=\.\.\.\)"):
        _ = units.actor.scheduler


# -- an optimizer that comes before its model ----------------------------------------------------------------


def step(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> None:
    accelerator.backward(model(torch.ones(1, 2)).sum())
    optimizer.step()


def test_an_optimizer_that_came_first_is_looked_at_in_its_first_step(accelerator: Accelerator) -> None:
    model, other = network(1), network(2)
    mine = accelerator.prepare(sgd(model))
    stray = accelerator.prepare(sgd(other))
    model = accelerator.prepare(model)
    step(accelerator, model, mine)
    with pytest.raises(PrepareError, match="SGD holds a parameter that belongs to no prepared model"):
        step(accelerator, model, stray)
    other = accelerator.prepare(other)
    step(accelerator, other, stray)


def test_an_optimizer_without_any_model_is_let_be(accelerator: Accelerator) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=1.0))
    accelerator.backward(weight.sum())
    optimizer.step()
    assert weight.tolist() == [0.0, 0.0]


# -- schedule_in ---------------------------------------------------------------------------------------------


def test_a_unit_of_the_schedule_without_a_schedule_is_refused(accelerator: Accelerator) -> None:
    with pytest.raises(PrepareError, match=r"without a scheduler\.\n  where: prepare\(\) of Linear"):
        accelerator.prepare(network(), schedule_in="updates")


def test_a_schedule_keeps_its_unit(accelerator: Accelerator) -> None:
    model = network()
    opt = sgd(model)
    raw = schedule(opt)
    _, _, prepared = accelerator.prepare(model, opt, raw, schedule_in="samples")
    assert prepared.schedule_in == "samples"  # type: ignore[attr-defined]
    assert accelerator.prepare(raw) is prepared
    assert accelerator.prepare(raw, schedule_in="samples") is prepared
    with pytest.raises(PrepareError, match="prepared before, with schedule_in='samples'"):
        accelerator.prepare(raw, schedule_in="updates")


def test_a_scheduler_whose_optimizer_was_not_prepared(accelerator: Accelerator) -> None:
    with pytest.raises(PrepareError, match="The optimizer of ExponentialLR was not prepared"):
        accelerator.prepare(schedule(sgd(network())), schedule_in="updates")
