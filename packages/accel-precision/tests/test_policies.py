"""The policies on real models: what computes in which dtype, and that the model stays itself."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from accel_core import plugins
from accel_core.errors import CapabilityError, PrepareError, UnknownNameError
from accel_core.protocols import Precision, Support
from accel_precision import AutocastForward, BFloat16, Float16, FullPrecision

pytestmark = pytest.mark.cpu
CPU = torch.device("cpu")
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
NAMES = ["no", *HALF]


def policy(name) -> Precision:
    return plugins.find(plugins.PRECISIONS, name)(CPU)


class Network(nn.Module):
    """Notes the dtype in which its layer computed."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x, *, scale: float = 1.0):
        """Return a mapping."""
        hidden = self.layer(x)
        self.computed = hidden.dtype
        return {"out": hidden * scale, "kept": x}


class Hardware:
    name = "toaster"

    def __init__(self, **refused):
        self.refused = refused

    def supports(self, capability):
        return Support(capability not in self.refused, self.refused.get(capability, ""))


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_in_its_dtype_and_returns_fp32(name):
    chosen = policy(name)
    assert isinstance(chosen, Precision)
    assert chosen.name == name
    model = Network()
    assert chosen.convert(model) is model
    out = model(torch.ones(1, 3), scale=2.0)["out"]
    assert model.computed == HALF.get(name, torch.float32)
    assert out.dtype == torch.float32
    out.sum().backward()
    # Master weights: parameters, buffers and gradients keep their dtype.
    assert {t.dtype for t in (*model.parameters(), *model.buffers(), model.layer.weight.grad)} == {
        torch.float32
    }
    plan = chosen.plan()
    assert plan.compute == HALF.get(name)
    assert plan.storage is None
    if name != "no":
        assert (plan.reduce, plan.output) == (torch.float32, torch.float32)


@pytest.mark.parametrize("name", HALF)
def test_restore_undoes_convert_exactly(name):
    model = Network()
    before = dict(model.__dict__)
    chosen = policy(name)
    assert chosen.restore(chosen.convert(model)) is model
    assert dict(model.__dict__) == before
    assert chosen.restore(model) is model  # nothing to undo
    model(torch.ones(1, 3))
    assert model.computed == torch.float32


@pytest.mark.parametrize("name", HALF)
def test_a_forward_of_the_object_itself_is_kept_and_comes_back(name):
    model = Network()
    own = model.forward = lambda x: Network.forward(model, x + 1)
    chosen = policy(name)
    chosen.convert(model)
    assert torch.equal(model(torch.zeros(1, 3))["kept"], torch.ones(1, 3))
    assert model.computed == HALF[name]
    assert chosen.restore(model).forward is own


@pytest.mark.parametrize("name", HALF)
def test_signature_and_documentation_are_the_models_own(name):
    model = Network()
    expected = inspect.signature(model.forward)
    policy(name).convert(model)
    assert inspect.signature(model.forward) == expected
    assert model.forward.__doc__ == "Return a mapping."
    assert isinstance(model.forward, AutocastForward)


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_compute_with_their_own_weights(name, copied):
    # A class that can be imported, as pickle asks for; the copy must not run the original's forward.
    model = nn.Linear(2, 1, bias=False)
    policy(name).convert(model)
    twin = copied(model)
    with torch.no_grad():
        twin.weight.zero_()
    assert torch.equal(twin(torch.ones(1, 2)), torch.zeros(1, 1))
    assert twin.forward.__wrapped__.__self__ is twin
    policy(name).restore(twin)
    assert twin(torch.ones(1, 2)).dtype == torch.float32
    assert "forward" not in twin.__dict__


@pytest.mark.parametrize("name", HALF)
def test_converting_again_changes_nothing_and_to_another_precision_is_an_error(name):
    model = Network()
    chosen = policy(name)
    chosen.convert(model)
    once = model.forward
    chosen.convert(model)
    assert model.forward is once
    (other,) = set(HALF) - {name}
    with pytest.raises(PrepareError, match="already computes in"):
        policy(other).convert(model)


class Countdown(nn.Module):
    """Calls itself, so that one autocast is entered inside another of the same module."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, depth=2):
        return self.layer(x if depth == 0 else self(x, depth - 1))


def test_a_module_that_calls_itself_leaves_no_autocast_behind():
    model = BFloat16(CPU).convert(Countdown())
    model(torch.ones(1, 2))
    assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(RuntimeError, match="shapes"):
        model(torch.ones(1, 5))
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", HALF)
def test_a_converted_model_compiles_in_one_graph(name):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    policy(name).convert(model)
    x = torch.ones(1, 3)
    expected = model(x)
    found = torch.compile(model, backend="eager", fullgraph=True)(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", HALF)
def test_results_are_those_of_torch_autocast(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    x = torch.randn(5, 8)
    with torch.autocast("cpu", HALF[name]):
        expected = model(x)
    expected.float().pow(2).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    out = policy(name).convert(model)(x)
    out.pow(2).sum().backward()
    assert torch.equal(out, expected.float())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_holds_for_plain_operations(name):
    chosen = policy(name)
    a = torch.ones(2, 2)
    with chosen.autocast(cache_enabled=False):
        assert (a @ a).dtype == HALF.get(name, torch.float32)
        with chosen.autocast(enabled=False):
            assert (a @ a).dtype == torch.float32
    assert (a @ a).dtype == torch.float32


@pytest.mark.parametrize(("name", "missing"), [("fp16", "fp16"), ("fp16", "scaler"), ("bf16", "bf16")])
def test_a_device_that_cannot_is_refused_with_its_reason(name, missing):
    with pytest.raises(CapabilityError, match="on toaster: it only browns"):
        policy(name).check(Hardware(**{missing: "it only browns"}))
    policy(name).check(Hardware())
    policy("no").check(Hardware(fp16="", bf16="", scaler=""))


def test_only_fp16_scales():
    assert policy("no").scaler() is None
    assert policy("bf16").scaler(init_scale=4.0) is None
    scaler = policy("fp16").scaler(init_scale=4.0, growth_factor=3.0, backoff_factor=0.25, growth_interval=7)
    assert isinstance(scaler, torch.amp.GradScaler)
    found = scaler.state_dict()
    expected = {"scale": 4.0, "growth_factor": 3.0, "backoff_factor": 0.25, "growth_interval": 7}
    assert {name: found[name] for name in expected} == expected
    assert policy("fp16").scaler(enabled=False).scale(2.0) == 2.0


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'bf16'"):
        plugins.find(plugins.PRECISIONS, "bf61")


def test_the_entry_points_are_the_classes():
    found = [plugins.find(plugins.PRECISIONS, name) for name in NAMES]
    assert found == [FullPrecision, Float16, BFloat16]


@pytest.mark.parametrize("name", HALF)
def test_how_autocast_behaves_in_a_converted_model_can_be_set(name):
    class Looks(Network):
        def forward(self, x):
            self.cached = torch.is_autocast_cache_enabled()
            return super().forward(x)

    seen = []
    for options in ({}, {"enabled": False}, {"cache_enabled": False}):
        model = plugins.find(plugins.PRECISIONS, name)(CPU, **options).convert(Looks())
        model(torch.ones(1, 3))
        seen.append((model.computed, model.cached))
    assert seen == [(HALF[name], True), (torch.float32, True), (HALF[name], False)]
