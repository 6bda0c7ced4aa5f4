"""The single strategy, placement, and what both strategies look at first."""

import copy

import pytest
import torch
from torch import nn

from accel_core import plugins
from accel_core.errors import PrepareError
from accel_core.protocols import LonelyCollectives, Strategy, StrategyContext, Unit
from accel_parallel import foreign_parameters
from accel_parallel.placement import place

pytestmark = pytest.mark.cpu


class Marked:
    """A precision that says what it was given."""

    name = "marked"

    def convert(self, model):
        model.converted_on = next(model.parameters()).device.type
        return model


def strategy(device="cpu"):
    context = StrategyContext(
        device=torch.device(device), hardware=None, collectives=LonelyCollectives(), precision=Marked()
    )
    return plugins.find(plugins.STRATEGIES, "single")(context)


def test_it_is_a_strategy_that_wraps_nothing():
    here = strategy()
    assert isinstance(here, Strategy)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    unit = here.wrap(Unit(name="m", model=model, optimizers=(optimizer,)))
    assert unit.model is model
    assert unit.optimizers == (optimizer,)
    assert model.converted_on == "cpu"
    assert here.unwrap(model) is model
    with here.no_sync(model), here.inputs():
        here.backward(model(torch.ones(1, 2)).sum(), sync=False, retain_graph=True)
    assert torch.equal(model.weight.grad, torch.ones(2, 2))


def test_it_places_before_it_converts():
    # The meta device stands for an accelerator: moving there needs no hardware.
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    place(Unit(name="m", model=model, optimizers=(optimizer,)), torch.device("meta"))
    assert Marked().convert(model).converted_on == "meta"
    assert model.weight.is_meta
    assert optimizer.state[model.weight]["exp_avg"].is_meta


@pytest.mark.parametrize(
    "unit_of",
    [
        lambda model: Unit(name="m", model=model, place=False),
        lambda model: Unit(
            name="m", model=setattr(model, "hf_device_map", {"a": "cpu", "b": "disk"}) or model
        ),
    ],
    ids=["not asked", "dispatched"],
)
def test_some_models_stay_where_they_are(unit_of):
    model = nn.Linear(2, 2)
    place(unit_of(model), torch.device("meta"))
    assert not model.weight.is_meta


def test_optimizers_follow_parameters_that_are_new_objects_after_the_move():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    model, twin = Tied(), None
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (model, twin)]

    def step(each, optimizer):
        optimizer.zero_grad()
        each(torch.ones(1, 2)).pow(2).sum().backward()
        optimizer.step()

    for each, optimizer in zip((model, twin), optimizers, strict=True):
        step(each, optimizer)
    old = list(model.parameters())
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        place(Unit(name="m", model=model, optimizers=(optimizers[0],)), torch.device("cpu"))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
    assert not {id(p) for p in old} & {id(p) for p in model.parameters()}
    assert model.b.weight is model.a.weight
    assert list(foreign_parameters(optimizers[0], model)) == []
    for each, optimizer in zip((model, twin), optimizers, strict=True):
        step(each, optimizer)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", ["meta", "shared", "stray"])
def test_bad_units_are_refused_before_anything_is_changed(case):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    bad = {
        "meta": (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3, device="meta")),
            (),
            "'1.weight' has a shape",
        ),
        "shared": (nn.DataParallel(model), (), "already wrapped in DataParallel"),
        "stray": (
            model,
            (torch.optim.SGD([*model.parameters(), nn.Parameter(torch.ones(9))], lr=0.1),),
            r"\[4\], shape \(9,\)",
        ),
    }
    bad_model, optimizers, text = bad[case]
    with pytest.raises(PrepareError, match=text):
        strategy().wrap(Unit(name="m", model=bad_model, optimizers=optimizers))
    assert not hasattr(bad_model, "converted_on")


def test_a_compiled_model_and_its_optimizer_are_accepted():
    model = nn.Linear(2, 2)
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert strategy().wrap(Unit(name="m", model=compiled, optimizers=(optimizer,))).model is compiled
