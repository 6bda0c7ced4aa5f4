"""Parameters that run without the container's forward, and steps with gradients that were never averaged."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from accel_core import plugins
from accel_core.config import DistributedDataParallelKwargs
from accel_core.errors import CollectiveError, StateError
from accel_core.protocols import (
    GuardsSteps,
    JoinsUneven,
    LonelyCollectives,
    StrategyContext,
    Support,
    SyncsLate,
    TrainsAlone,
    Unit,
)
from accel_parallel.watch import _SPREAD, ReductionWatch, _spread

pytestmark = pytest.mark.cpu


class Gloo(LonelyCollectives):
    process_group = None

    def __init__(self):
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def all_gather_object(self, value):
        gathered = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def all_reduce(self, tensor, op="sum"):
        assert op == "mean"
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor / self.world_size


class AsItIs:
    name = "no"

    def convert(self, model):
        return model


class Cpu:
    name = "cpu"

    def supports(self, capability):
        return Support(True)


def strategy(**settings):
    context = StrategyContext(
        device=torch.device("cpu"),
        hardware=Cpu(),
        collectives=Gloo(),
        precision=AsItIs(),
        settings={"ddp": DistributedDataParallelKwargs(**settings)},
    )
    return plugins.find(plugins.STRATEGIES, "ddp")(context)


class Deep(nn.Module):
    """Many layers, so that most parameters have no hook of the watch, and methods beside forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(15))
        self.scale = 2.0

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x

    def generate(self, x):
        with torch.no_grad():
            return self(x)

    def encode(self, x):
        return self.layers[6](x)

    def compute_loss(self, x):
        return self.forward(x).square().mean()


class Checkpointed(Deep):
    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(lambda value, layer=layer: torch.tanh(layer(value)), x, use_reentrant=False)
        return x


def ways():
    here = strategy()
    x = torch.ones(2, 3) * (here.batches.rank + 1)
    found = {}

    def attempt(name, kind, way):
        inner = kind()
        shared = here.wrap(Unit(name="deep", model=inner)).model
        try:
            way(shared, inner)
        except CollectiveError as error:
            found[name] = error.what[:45]
        else:
            found[name] = same(inner)

    def same(inner):
        gradients = here.batches.all_gather_object(
            [None if p.grad is None else p.grad.tolist() for p in inner.parameters()]
        )
        return "equal" if gradients[0] == gradients[1] else "different"

    def both(shared, inner):
        here.backward(shared(x).sum())
        here.backward(inner.encode(x).sum())

    attempt("method", Deep, lambda shared, inner: here.backward(inner.compute_loss(x)))
    attempt("forward of the inner model", Deep, lambda shared, inner: here.backward(inner(x).sum()))
    attempt("a part in the middle", Deep, lambda shared, inner: here.backward(inner.encode(x).sum()))
    attempt("one bias", Deep, lambda shared, inner: here.backward(inner.layers[7].bias.sum()))
    attempt("module of the container", Deep, lambda shared, inner: here.backward(shared.module(x).sum()))
    attempt("a part after a forward", Deep, both)
    attempt(
        "a part beside forward",
        Deep,
        lambda shared, inner: here.backward((shared(x) + inner.encode(x)).sum()),
    )
    attempt(
        "generate before", Deep, lambda shared, inner: (inner.generate(x), here.backward(shared(x).sum()))
    )
    attempt("checkpoint", Checkpointed, lambda shared, inner: here.backward(shared(x).sum()))
    attempt(
        "a penalty",
        Deep,
        lambda shared, inner: here.backward(shared(x).sum() + inner.layers[3].weight.norm()),
    )
    return found


def test_what_runs_parameters_without_the_container_is_refused_wherever_they_are(pool):
    told = "The gradients of the model of unit 'deep' wer"
    expected = {
        **dict.fromkeys(
            (
                "method",
                "forward of the inner model",
                "a part in the middle",
                "one bias",
                "module of the container",
                "a part after a forward",
            ),
            told,
        ),
        **dict.fromkeys(("a part beside forward", "generate before", "checkpoint", "a penalty"), "equal"),
    }
    assert pool.run_in_group(2, ways) == [expected] * 2


def attributes():
    shared = strategy().wrap(Unit(name="deep", model=Deep())).model
    found = {}
    for name in ("compute_loss", "scale", "no_such_thing", "_hidden"):
        try:
            getattr(shared, name)
        except AttributeError as error:
            found[name] = str(error)
    return found, shared.module.scale, hasattr(shared, "compute_loss"), len(list(shared.parameters()))


def test_an_attribute_of_the_inner_model_is_explained(pool):
    for found, scale, has, count in pool.run_in_group(2, attributes):
        assert (
            "accelerator.unwrap_model(model).compute_loss(...) where nothing is trained"
            in found["compute_loss"]
        )
        assert "let Deep.forward call it" in found["compute_loss"]
        assert found["scale"].endswith("Use accelerator.unwrap_model(model).scale")
        assert "unwrap_model" not in found["no_such_thing"]
        assert "unwrap_model" not in found["_hidden"]
        assert (scale, has, count) == (2.0, False, 30)


def steps():
    """Return what a step said after gradients that stayed on this rank."""
    here = strategy()
    x = torch.ones(2, 3) * (here.batches.rank + 1)
    found = {}

    def attempt(name, way):
        inner = Deep()
        optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
        optimizer.register_step_pre_hook(lambda opt, *_: here.before_step(opt))
        shared = here.wrap(Unit(name="deep", model=inner, optimizers=(optimizer,))).model
        try:
            way(shared, optimizer)
        except StateError as error:
            found[name] = error.what[:60]
        else:
            found[name] = "stepped"

    def local(shared):
        with here.no_sync(shared):
            here.backward(shared(x).sum(), sync=False)

    def forgotten(shared, optimizer):
        local(shared)
        optimizer.step()

    def closed(shared, optimizer):
        local(shared)
        here.backward(shared(x).sum())
        optimizer.step()

    def cleared(shared, optimizer):
        local(shared)
        optimizer.zero_grad()
        optimizer.step()

    def zeroed(shared, optimizer):
        local(shared)
        optimizer.zero_grad(set_to_none=False)
        optimizer.step()

    def on_purpose(shared, optimizer):
        with here.no_sync(shared):
            here.backward(shared(x).sum(), sync=False)
            optimizer.step()

    def forward_only(shared, optimizer):
        with here.no_sync(shared):
            loss = shared(x).sum()
        here.backward(loss)
        optimizer.step()

    def other_parameters(shared, optimizer):
        local(shared)
        free = nn.Linear(1, 1)
        other = torch.optim.SGD(free.parameters(), lr=0.1)
        free(torch.ones(1, 1)).sum().backward()
        here.before_step(other)
        other.step()

    def trained_alone(shared, optimizer):
        with here.alone(shared):
            here.backward(shared(x).sum())
            optimizer.step()
        here.average_(shared)
        optimizer.step()

    for way in (
        forgotten,
        closed,
        cleared,
        zeroed,
        on_purpose,
        forward_only,
        other_parameters,
        trained_alone,
    ):
        attempt(way.__name__, way)
    return found


def test_a_step_with_gradients_of_one_rank_is_refused_unless_it_is_meant(pool):
    told = "The optimizer would apply gradients of the model of unit 'de"
    expected = {
        **dict.fromkeys(("forgotten", "forward_only"), told),
        **dict.fromkeys(
            ("closed", "cleared", "zeroed", "on_purpose", "other_parameters", "trained_alone"), "stepped"
        ),
    }
    assert pool.run_in_group(2, steps) == [expected] * 2


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 100])
def test_hooks_stand_on_the_first_the_last_and_a_few_in_between(count):
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(count)]
    chosen = _spread(parameters)
    assert len(chosen) == min(count, _SPREAD)
    assert chosen[0] is parameters[0]
    assert chosen[-1] is parameters[-1]


def test_a_watch_without_anything_trainable_has_nothing_to_say():
    model = nn.Linear(2, 2).requires_grad_(False)
    watch = ReductionWatch("m", model)
    watch.before(torch.zeros(()))
    watch.check()
    watch.check_step(model.parameters())
    watch.close()


def abilities():
    here = strategy()
    return [isinstance(here, kind) for kind in (GuardsSteps, JoinsUneven, SyncsLate, TrainsAlone)]


def test_data_parallelism_says_what_it_can_do_and_one_process_that_it_cannot(pool):
    assert pool.run_in_group(2, abilities) == [[True] * 4] * 2
    single = plugins.find(plugins.STRATEGIES, "single")
    assert not any(
        hasattr(single, name) for name in ("alone", "average_", "join", "sync_next", "before_step")
    )
