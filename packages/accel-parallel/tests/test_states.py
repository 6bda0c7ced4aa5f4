"""State by name: what changed is named, what cannot be written is refused, nothing is half loaded."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from accel_core.errors import CheckpointError
from accel_core.protocols import LonelyCollectives, Unit
from accel_parallel import AcceleratedOptimizer, PlainState
from accel_parallel.encoding import decode, encode

pytestmark = pytest.mark.cpu

STATES = PlainState(LonelyCollectives())


class Store:
    """A checkpoint in memory, as a sink and as a source; JSON really goes through JSON."""

    def __init__(self):
        self.kept = {}

    def tensors(self, name, values=None):
        if values is None:
            return self.kept[name, "tensors"]
        return self.kept.update({(name, "tensors"): {key: value.clone() for key, value in values.items()}})

    def json(self, name, *value):
        if not value:
            return json.loads(self.kept[name, "json"])
        return self.kept.update({(name, "json"): json.dumps(value[0], allow_nan=False)})

    def names(self):
        return {name for name, _ in self.kept}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


def trained(optimizer, model=None, steps=3):
    torch.manual_seed(3)
    model = model or Tied()
    made = optimizer(model)
    for _ in range(steps):

        def closure():
            made.zero_grad()
            loss = model(torch.randn(8, 4)).pow(2).mean()
            loss.backward()
            return loss

        closure()
        made.step(closure)
    return Unit(name="m", model=model, optimizers=(made,))


OPTIMIZERS = {
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), betas=(0.7, 0.8), amsgrad=True),
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=torch.tensor(0.1), momentum=0.9),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), centered=True),
    "lbfgs": lambda m: torch.optim.LBFGS(m.parameters(), max_iter=3),
    "adafactor": lambda m: torch.optim.Adafactor(m.parameters()),
    "rprop": lambda m: torch.optim.Rprop(m.parameters()),
}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_kind_of_optimizer_comes_back_bit_for_bit(name):
    unit = trained(OPTIMIZERS[name])
    store = Store()
    STATES.save(unit, store)
    other = Tied()
    back = Unit(name="m", model=other, optimizers=(AcceleratedOptimizer(OPTIMIZERS[name](other)),))
    report = STATES.load(back, store)
    assert report.ok
    assert set(report.restored) == {*other.state_dict(), "m/optimizer_0"}
    assert same(back.optimizers[0].state_dict(), unit.optimizers[0].state_dict())
    assert same(dict(other.state_dict()), dict(unit.model.state_dict()))


def test_state_in_another_dtype_than_its_parameter_is_not_rounded():
    model = nn.Linear(2, 2).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    precise = torch.tensor([[1 / 3, 1 / 7], [1 / 9, 1 / 11]])
    optimizer.state[model.weight]["momentum_buffer"] = precise
    store = Store()
    STATES.save(Unit(name="m", model=model, optimizers=(optimizer,)), store)
    other = nn.Linear(2, 2).bfloat16()
    back = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    STATES.load(Unit(name="m", model=other, optimizers=(back,)), store)
    assert torch.equal(back.state[other.weight]["momentum_buffer"], precise)


def test_moments_are_filled_where_they_are():
    unit = trained(OPTIMIZERS["adamw"])
    store = Store()
    STATES.save(unit, store)
    back = trained(OPTIMIZERS["adamw"], steps=1)
    state = back.optimizers[0].state
    places = {id(p): {key: value.data_ptr() for key, value in state[p].items()} for p in state}
    STATES.load(back, store)
    assert {id(p): {key: value.data_ptr() for key, value in state[p].items()} for p in state} == places
    assert same(back.optimizers[0].state_dict(), unit.optimizers[0].state_dict())


def test_state_that_is_the_memory_of_something_else_is_not_filled():
    store, values = Store(), {}
    for first in (True, False):
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        shared = torch.full((2, 3), 7.0)
        optimizer.state[model.weight].update(
            momentum_buffer=torch.full((2, 3), 5.0) if first else model.weight.detach(),
            other=torch.full((2, 3), 6.0) if first else shared,
            third=torch.full((2, 3), 8.0) if first else shared,
            odd=torch.arange(6.0).view(2, 3) if first else torch.zeros(3, 2).t(),
        )
        unit = Unit(name="m", model=model, optimizers=(optimizer,))
        if first:
            values = {"weight": model.weight.detach().clone(), **optimizer.state[model.weight]}
            STATES.save(unit, store)
    STATES.load(unit, store)
    assert torch.equal(model.weight, values.pop("weight"))
    found = optimizer.state[model.weight]
    assert {key: value.tolist() for key, value in found.items()} == {k: v.tolist() for k, v in values.items()}


class Own(nn.Module):
    """Loads its weight in a way of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        with torch.no_grad():
            self.weight.copy_(state_dict[prefix + "weight"] + 1)


def test_modules_that_load_in_their_own_way_and_hooks_still_do():
    model, store = nn.Sequential(nn.Linear(2, 2), Own()), Store()
    STATES.save(Unit(name="m", model=model), store)
    STATES.load(Unit(name="m", model=model), store)
    assert model[1].weight.tolist() == [1, 1]
    seen = []
    model.register_load_state_dict_post_hook(lambda module, keys: seen.append(type(module)))
    STATES.load(Unit(name="m", model=model), store)
    assert seen == [nn.Sequential]


class ReadsItself(Store):
    """Its tensors are written into memory behind torch's back, as those of a file are."""

    def tensors(self, name, values=None):
        found = super().tensors(name, values)
        return found if found is None else _Reads(found)


class _Reads(dict):
    def read_into(self, targets):
        for name, target in targets.items():
            target.detach().numpy()[...] = self[name].numpy()
        return list(targets)


@pytest.mark.parametrize("kind", [Store, ReadsItself])
def test_autograd_sees_that_a_load_changed_what_it_kept(kind):
    model, store = nn.Linear(2, 2), kind()
    STATES.save(Unit(name="m", model=model), store)
    loss = model(torch.ones(1, 2, requires_grad=True)).pow(2).sum()
    STATES.load(Unit(name="m", model=model), store)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_another_dtype_is_an_error_and_converted_when_asked():
    model, store = nn.Linear(2, 2).double(), Store()
    STATES.save(Unit(name="m", model=model), store)
    other = Unit(name="m", model=nn.Linear(2, 2))
    before = copy.deepcopy(other.model.state_dict())
    with pytest.raises(CheckpointError, match="nothing was changed") as caught:
        STATES.load(other, store)
    assert "weight: float64 in the checkpoint, float32 in the model" in caught.value.where
    assert same(dict(other.model.state_dict()), dict(before))
    report = STATES.load(other, store, strict=False)
    assert not report.ok
    assert set(report.mismatched) == {"weight", "bias"} == set(report.restored)
    assert torch.equal(other.model.weight, model.weight.float())


def in_groups(*groups):
    return lambda model: torch.optim.Adam(
        [
            {"params": [model.get_parameter(name) for name in names], "lr": 0.1 * number}
            for number, names in enumerate(groups, 1)
        ]
    )


def loaded_into(store, optimizer, model=None, strict=True):
    model = model or Tied()
    unit = Unit(name="m", model=model, optimizers=(optimizer(model),))
    return unit, STATES.load(unit, store, strict=strict)


WEIGHTS, BIASES = ("first.weight", "norm.weight"), ("first.bias", "norm.bias", "last.bias")


def test_another_order_is_found_by_name():
    unit = trained(in_groups(WEIGHTS, BIASES))
    store = Store()
    STATES.save(unit, store)
    back, report = loaded_into(store, in_groups(BIASES[::-1], WEIGHTS))
    assert report.ok
    (found,), (expected,) = back.optimizers, unit.optimizers
    assert [group["lr"] for group in found.param_groups] == [0.2, 0.1]
    for name in WEIGHTS + BIASES:
        assert same(
            found.state[back.model.get_parameter(name)], expected.state[unit.model.get_parameter(name)]
        )


def test_another_grouping_is_an_error_and_changes_nothing():
    store = Store()
    STATES.save(trained(in_groups(WEIGHTS, BIASES)), store)
    model = Tied()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match="groups its parameters in another way") as caught:
        loaded_into(store, in_groups((*WEIGHTS, BIASES[0]), BIASES[1:]), model)
    assert "saved: first.weight, norm.weight | first.bias" in str(caught.value)
    assert same(dict(before), dict(model.state_dict()))


def test_parameters_that_came_or_went_are_named():
    store = Store()
    STATES.save(trained(in_groups(WEIGHTS, BIASES)), store)
    with pytest.raises(CheckpointError) as caught:
        loaded_into(store, in_groups(WEIGHTS[:1], BIASES))
    assert "unexpected: m/optimizer_0/norm.weight" in str(caught.value)
    back, report = loaded_into(store, in_groups(WEIGHTS[:1], BIASES), strict=False)
    assert report.unexpected == ("m/optimizer_0/norm.weight",)
    assert len(back.optimizers[0].state) == 4


def test_another_optimizer_class_or_a_missing_or_surplus_optimizer_is_an_error():
    store = Store()
    STATES.save(trained(in_groups(WEIGHTS, BIASES)), store)
    with pytest.raises(CheckpointError, match="is a SGD, the checkpoint has the state of a Adam"):
        loaded_into(store, OPTIMIZERS["sgd"])
    model = Tied()
    with pytest.raises(CheckpointError, match="unexpected: m/optimizer_0"):
        STATES.load(Unit(name="m", model=model), store)
    two = (in_groups(WEIGHTS, BIASES)(model), OPTIMIZERS["sgd"](model))
    with pytest.raises(CheckpointError, match="missing: m/optimizer_1"):
        STATES.load(Unit(name="m", model=model, optimizers=two), store)
    with pytest.raises(CheckpointError, match="no model called 'n'"):
        STATES.load(Unit(name="n", model=model), store)


def test_a_stray_parameter_cannot_be_saved():
    model = Tied()
    stray = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.ones(7))], lr=0.1)
    with pytest.raises(CheckpointError, match="has no name in the model"):
        STATES.save(Unit(name="m", model=model, optimizers=(stray,)), Store())


def test_full_state_is_the_models_own_through_containers():
    model = Tied()
    expected = dict(model.state_dict())
    compiled = torch.compile(model, backend="eager")
    shared = torch.nn.DataParallel(model)
    for each in (model, compiled, shared, torch.compile(shared, backend="eager")):
        assert same(STATES.full(Unit(name="m", model=each)), expected)
    found = STATES.full(Unit(name="m", model=model))
    assert found["first.weight"].data_ptr() == found["last.weight"].data_ptr()


def test_load_full_names_every_fault_and_changes_nothing():
    model = Tied()
    before = copy.deepcopy(dict(model.state_dict()))
    values = {name: torch.zeros_like(value) for name, value in before.items()}
    values["first.bias"] = torch.zeros(9)
    del values["norm.bias"], values["last.bias"]
    values["extra"] = torch.zeros(1)
    unit = Unit(name="m", model=model)
    with pytest.raises(CheckpointError) as caught:
        STATES.load_full(unit, values)
    text = str(caught.value)
    assert "missing: norm.bias, last.bias" in text
    assert "unexpected: extra" in text
    assert "first.bias: (9,) in the checkpoint, (4,) in the model" in text
    assert same(dict(model.state_dict()), before)

    report = STATES.load_full(unit, values, strict=False)
    assert not report.ok
    assert report.mismatched.keys() == {"first.bias"}
    assert torch.equal(model.first.weight, torch.zeros(4, 4))
    assert torch.equal(model.first.bias, before["first.bias"])


def test_one_name_of_a_shared_tensor_is_enough():
    model = Tied()
    values = {name: value.clone() + 1 for name, value in model.state_dict().items() if name != "last.weight"}
    report = STATES.load_full(Unit(name="m", model=model), values)
    assert report.ok
    assert model.last.weight is model.first.weight
    assert torch.equal(model.last.weight, values["first.weight"])


class Extra(nn.Linear):
    def __init__(self, extra):
        super().__init__(1, 1)
        self.extra = extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


def test_extra_state_is_kept_as_a_tensor_and_refused_otherwise():
    store = Store()
    STATES.save(Unit(name="m", model=Extra(torch.tensor(5.0))), store)
    model = Extra(torch.tensor(1.0))
    assert STATES.load(Unit(name="m", model=model), store).ok
    assert model.extra == 5.0
    with pytest.raises(CheckpointError, match="_extra_state"):
        STATES.save(Unit(name="m", model=Extra({"a": 1})), Store())


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.builds(
        lambda n, dtype: torch.arange(n).to(dtype),
        st.integers(0, 4),
        st.sampled_from([torch.float64, torch.int32]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(value=values)
def test_encoded_state_survives_json(value):
    tensors = {}
    text = json.dumps(encode(value, "x", tensors), allow_nan=False)
    assert same(decode(json.loads(text), tensors), value)


def test_tensors_with_dots_in_their_keys_do_not_overwrite_each_other():
    value = {"a": {"b.c": torch.zeros(1)}, "a.b": {"c": torch.ones(1)}}
    tensors = {}
    encoded = encode(value, "x", tensors)
    assert same(decode(encoded, tensors), value)


def test_nan_comes_back():
    assert decode(json.loads(json.dumps(encode(float("nan"), "x", {}))), {}) != 0.0


@pytest.mark.parametrize("value", [object(), {1: print}, {"a": [lambda: 0]}])
def test_what_would_need_pickle_is_refused_with_its_place(value):
    with pytest.raises(CheckpointError, match="without pickle") as caught:
        encode(value, "state.w", {})
    assert caught.value.where.startswith("state.w")


@pytest.mark.parametrize("value", [{"tensor": "gone"}, {"code": []}, {}, {"list": [], "tuple": []}])
def test_unknown_forms_are_an_error(value):
    with pytest.raises(CheckpointError, match="cannot read"):
        decode(value, {})
