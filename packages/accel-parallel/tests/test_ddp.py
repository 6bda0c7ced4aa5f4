"""Data parallelism against plain PyTorch on the whole batch, on real gloo processes."""

import warnings
from contextlib import ExitStack, nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from accel_core import plugins
from accel_core.errors import CheckpointError, CollectiveError, PrepareError
from accel_core.protocols import LonelyCollectives, StrategyBase, StrategyContext, Support, Unit
from accel_parallel import AcceleratedOptimizer

pytestmark = pytest.mark.cpu

# fp64 sums in another order: a few units in the last place per addition.
RELATIVE = 1e-12


class Gloo(LonelyCollectives):
    """What the strategy needs of a group, on torch's default group."""

    process_group = None

    def __init__(self):
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def all_gather_object(self, value):
        gathered = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered


class AsItIs:
    """Full precision, so that these tests need accel-parallel and accel-core alone."""

    name = "no"

    def convert(self, model):
        return model


class Cpu:
    name = "cpu"

    def supports(self, capability):
        return Support(True)


def context(collectives=None, precision=None, **settings):
    return StrategyContext(
        device=torch.device("cpu"),
        hardware=Cpu(),
        collectives=collectives or Gloo(),
        precision=precision or AsItIs(),
        settings=settings,
    )


def strategy(*args, name="ddp", **settings) -> StrategyBase:
    return plugins.find(plugins.STRATEGIES, name)(context(*args, **settings))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def data(samples):
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(samples, 5, generator=generator, dtype=torch.float64)
    return x, torch.randn(samples, 3, generator=generator, dtype=torch.float64)


def loss_of(model, x, y):
    return nn.functional.mse_loss(model(x), y)


def relative(found, expected):
    return (found - expected).norm().item() / expected.norm().item()


def train_shared(steps, micro, settings):
    """Train on this rank's part of every batch; return losses, gradients and parameters after each step."""
    here = strategy(**({"ddp": settings} if settings else {}))
    rank, world = here.batches.rank, here.batches.world_size
    # Ranks start from different weights: wrapping must make them rank 0's.
    model = network(seed=rank)
    unit = here.wrap(Unit(name="m", model=model, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1),)))
    assert here.unwrap(unit.model) is model
    (optimizer,) = unit.optimizers
    x, y = data(steps * micro * world * 2)
    log = []
    for step in range(steps):
        total = 0.0
        for part in range(micro):
            start = ((step * micro + part) * world + rank) * 2
            closing = part == micro - 1
            with nullcontext() if closing else here.no_sync(unit.model):
                loss = loss_of(unit.model, x[start : start + 2], y[start : start + 2]) / micro
                here.backward(loss, sync=closing)
            total += loss.item()
        log.append((total, [p.grad.clone() for p in model.parameters()]))
        optimizer.step()
        optimizer.zero_grad()
    return log, [p.detach().clone() for p in model.parameters()]


def train_plain(steps, per_step):
    model = network(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data(steps * per_step)
    log = []
    for step in range(steps):
        part = slice(step * per_step, (step + 1) * per_step)
        loss = loss_of(model, x[part], y[part])
        loss.backward()
        log.append((loss.item(), [p.grad.clone() for p in model.parameters()]))
        optimizer.step()
        optimizer.zero_grad()
    return log, [p.detach().clone() for p in model.parameters()]


@pytest.mark.world(2, 4)
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [None, SimpleNamespace(gradient_as_bucket_view=True, find_unused_parameters=False)],
    ids=["plain", "views"],
)
def test_loss_gradients_and_parameters_are_those_of_the_whole_batch(pool, world, micro, settings):
    expected, final = train_plain(3, micro * world * 2)
    results = pool.run_in_group(world, train_shared, 3, micro, settings)
    for step, (loss, gradients) in enumerate(expected):
        mean = sum(log[step][0] for log, _ in results) / world
        assert mean == pytest.approx(loss, rel=RELATIVE)
        for log, _ in results:
            for found, wanted in zip(log[step][1], gradients, strict=True):
                assert relative(found, wanted) < RELATIVE
    for _, parameters in results:
        for found, wanted in zip(parameters, final, strict=True):
            assert relative(found, wanted) < RELATIVE


def gradients_without_sync():
    here = strategy()
    model = network()
    unit = here.wrap(Unit(name="m", model=model))
    x, y = data(2 * here.batches.world_size)
    mine = slice(2 * here.batches.rank, 2 * here.batches.rank + 2)
    with here.no_sync(unit.model):
        here.backward(loss_of(unit.model, x[mine], y[mine]), sync=False)
    return [p.grad.clone() for p in model.parameters()]


def test_no_sync_keeps_gradients_local(pool):
    for rank, gradients in enumerate(pool.run_in_group(2, gradients_without_sync)):
        model = network()
        x, y = data(4)
        loss_of(model, x[2 * rank : 2 * rank + 2], y[2 * rank : 2 * rank + 2]).backward()
        for parameter, found in zip(model.parameters(), gradients, strict=True):
            assert torch.equal(parameter.grad, found)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)


class Marks(AsItIs):
    """A precision that changes the object's forward, as autocast policies do."""

    def convert(self, model):
        assert not isinstance(model, nn.parallel.DistributedDataParallel)
        inner = model.forward
        model.forward = lambda x: inner(x) * 2
        return model


def precision_inside():
    here = strategy(precision=Marks())
    model = nn.Linear(2, 1, bias=False)
    unit = here.wrap(Unit(name="m", model=model))
    here.backward(unit.model(torch.ones(1, 2)).sum())
    return isinstance(unit.model, nn.parallel.DistributedDataParallel), model.weight.grad.tolist()


def test_the_precision_is_inside_the_container(pool):
    assert pool.run_in_group(2, precision_inside) == [(True, [[2.0, 2.0]])] * 2


def overflow_on_rank_one():
    here = strategy()
    model = network()
    unit = here.wrap(Unit(name="m", model=model, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1),)))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = AcceleratedOptimizer(unit.optimizers[0], scaler=scaler)
    x, y = data(4)
    skipped = []
    for step in range(2):
        loss = loss_of(unit.model, x, y)
        if step == 0 and here.batches.rank == 1:
            loss = loss * torch.inf
        here.backward(scaler.scale(loss))
        optimizer.step()
        skipped.append(optimizer.step_was_skipped)
        optimizer.zero_grad()
    return skipped, scaler.get_scale(), [p.tolist() for p in model.parameters()]


def test_an_overflow_of_one_rank_skips_the_step_of_all(pool):
    first, second = pool.run_in_group(2, overflow_on_rank_one)
    assert first == second
    assert first[:2] == ([True, False], 4.0)


class WithMethod(nn.Linear):
    def other(self, x):
        return self(x) if x is None else nn.functional.linear(x, self.weight, self.bias)


def outcomes_of_odd_backwards():
    """Return which ways of computing gradients raise; of the rest, whether ranks agree on them."""
    here = strategy()
    x = torch.ones(1, 2) * (here.batches.rank + 1)

    def bypass(shared, inner):
        here.backward(inner.other(x).sum())

    def bypass_later(shared, inner):
        here.backward(shared(x).sum())
        here.backward(inner.other(x).sum())

    def twice(shared, inner):
        loss = shared(x).sum()
        here.backward(loss, retain_graph=True)
        here.backward(loss)

    def crossed(shared, inner):
        first, second = shared(x).sum(), shared(x).sum()
        here.backward(first)
        here.backward(second)

    def one_after_the_other(shared, inner):
        here.backward(shared(x).sum())
        here.backward(shared(x).sum())

    def summed(shared, inner):
        here.backward(shared(x).sum() + shared(x).sum())

    def only_the_last_synchronised(shared, inner):
        with here.no_sync(shared):
            here.backward(shared(x).sum(), sync=False)
            here.backward(inner.other(x).sum(), sync=False)
        here.backward(shared(x).sum())

    def evaluated_in_between(shared, inner):
        with torch.no_grad():
            shared(x)
            inner.other(x)
        here.backward(shared(x).sum())

    def local_on_purpose(shared, inner):
        with here.no_sync(shared):
            loss = shared(x).sum()
            here.backward(loss, retain_graph=True)
            here.backward(loss)
        here.backward(shared(x).sum())

    found = {}
    for way in (
        bypass,
        bypass_later,
        twice,
        crossed,
        one_after_the_other,
        summed,
        only_the_last_synchronised,
        evaluated_in_between,
        local_on_purpose,
    ):
        torch.manual_seed(0)
        model = WithMethod(2, 1)
        shared = here.wrap(Unit(name="net", model=model)).model
        try:
            way(shared, model)
        except CollectiveError as error:
            found[way.__name__] = str(error)[:40]
        else:
            gradients = here.batches.all_gather_object(model.weight.grad.tolist())
            found[way.__name__] = "equal" if gradients[0] == gradients[1] else "different"
    return found


def test_gradients_that_are_not_averaged_are_an_error_and_no_others_are(pool):
    told = "The gradients of the model of unit 'net'"
    expected = {
        **dict.fromkeys(("bypass", "bypass_later", "twice", "crossed"), told),
        "one_after_the_other": "equal",
        "summed": "equal",
        "only_the_last_synchronised": "equal",
        "evaluated_in_between": "equal",
        "local_on_purpose": "equal",
    }
    assert pool.run_in_group(2, outcomes_of_odd_backwards) == [expected] * 2


def settings_arrive():
    unused = (
        strategy(ddp=SimpleNamespace(find_unused_parameters=True))
        .wrap(Unit(name="m", model=Branches()))
        .model
    )
    for _ in range(2):
        unused(torch.ones(1, 2)).sum().backward()
    static = strategy(ddp=SimpleNamespace(static_graph=True, bucket_cap_mb=3, broadcast_buffers=False))
    model = static.wrap(Unit(name="m", model=Branches())).model
    return unused.find_unused_parameters, model.static_graph, model.bucket_bytes_cap, model.broadcast_buffers


def test_settings_are_passed_on(pool):
    assert pool.run_in_group(2, settings_arrive) == [(True, True, 3 * 1024 * 1024, False)] * 2


def what_stays_bare():
    here = strategy()
    frozen = network().requires_grad_(False)
    model = network()
    return (
        here.wrap(Unit(name="a", model=frozen)).model is frozen,
        here.wrap(Unit(name="b", model=model, evaluation=True)).model is model,
        here.unwrap(model) is model,
        isinstance(here.no_sync(model), nullcontext),
    )


def test_evaluation_and_frozen_models_are_not_wrapped(pool):
    assert pool.run_in_group(2, what_stays_bare) == [(True, True, True, True)] * 2


def warned_by_defaults():
    defaults = SimpleNamespace(dim=0, broadcast_buffers=True, bucket_cap_mb=25, check_reduction=False)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        strategy(ddp=defaults).wrap(Unit(name="m", model=network()))
    return [str(warning.message) for warning in seen]


def test_settings_left_at_their_defaults_are_not_warned_of(pool):
    assert pool.run_in_group(2, warned_by_defaults) == [[], []]


class Mapped(nn.Linear):
    def __init__(self, **device_map):
        super().__init__(2, 2)
        self.hf_device_map = device_map


def refusals():
    """Return the error of every unit that cannot be shared."""
    here = strategy()
    model = network()
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    units = {
        "meta": Unit(name="m", model=nn.Linear(2, 2, device="meta")),
        "part on meta": Unit(name="m", model=mixed, place=False),
        "wrapped": Unit(name="m", model=nn.parallel.DistributedDataParallel(network())),
        "part wrapped": Unit(name="m", model=nn.Sequential(nn.parallel.DistributedDataParallel(network()))),
        "several devices": Unit(name="m", model=Mapped(a="cpu", b="disk")),
        "elsewhere": Unit(name="m", model=Mapped(a=0)),
        "stray optimizer": Unit(
            name="m", model=model, optimizers=(torch.optim.SGD(network().parameters(), lr=0.1),)
        ),
    }
    found = {}
    for case, unit in units.items():
        try:
            here.wrap(unit)
        except PrepareError as error:
            found[case] = str(error)
    return found


def test_what_cannot_be_shared_is_refused_by_name(pool):
    found = pool.run_in_group(2, refusals)[1]
    expected = {
        "meta": "'weight' has a shape but no values",
        "part on meta": "'1.weight' has a shape but no values",
        "wrapped": "already wrapped in DistributedDataParallel",
        "part wrapped": "module '0', class DistributedDataParallel",
        "several devices": "dispatched over several devices: cpu, disk",
        "elsewhere": "was loaded on cuda:0, this process uses cpu",
        "stray optimizer": "param_groups[0]['params'][0], shape (7, 5); it has the shape of '0.weight'",
    }
    assert found.keys() == expected.keys()
    for case, text in expected.items():
        assert text in found[case], case


def test_a_missing_process_group_is_an_error_before_anything_is_changed():
    model = network()
    with pytest.raises(PrepareError, match="was not started"):
        strategy(LonelyCollectives()).wrap(Unit(name="m", model=model))


# -- state -------------------------------------------------------------------------------------


class Store:
    """A checkpoint in memory, as a sink and as a source."""

    def __init__(self):
        self.kept = {}

    def tensors(self, name, values=None):
        if values is None:
            return self.kept[name, "tensors"]
        return self.kept.update({(name, "tensors"): {key: value.clone() for key, value in values.items()}})

    def json(self, name, *value):
        if not value:
            return self.kept[name, "json"]
        return self.kept.update({(name, "json"): value[0]})

    def names(self):
        return {name for name, _ in self.kept}


def trained(collectives=None, name="ddp"):
    """Return a strategy and a unit that has taken two steps of Adam."""
    here = strategy(*([] if collectives is None else [collectives]), name=name)
    model = network()
    groups = [
        {"params": model[0].parameters(), "betas": (0.8, 0.9)},
        {"params": model[2].parameters(), "lr": 0.3},
    ]
    unit = here.wrap(Unit(name="m", model=model, optimizers=(torch.optim.Adam(groups, lr=0.1),)))
    x, y = data(4)
    for _ in range(2):
        here.backward(loss_of(unit.model, x, y))
        unit.optimizers[0].step()
        unit.optimizers[0].zero_grad()
    return here, unit


def save_shared():
    here, unit = trained()
    store = Store()
    here.states.save(unit, store)
    return store, here.states.full(unit), unit.optimizers[0].state_dict()


def test_state_written_by_two_ranks_is_read_by_one_bit_for_bit(pool):
    (store, full, optimizer), (empty, other, _) = pool.run_in_group(2, save_shared)
    assert list(full) == list(network().state_dict())  # no "module." in front
    assert store.names() == {"m/model", "m/optimizer_0", "m/optimizer_0/tensors"}
    assert empty.names() == set()
    assert all(torch.equal(full[name], other[name]) for name in full)

    here = strategy(LonelyCollectives(), name="single")
    model = network(seed=5)
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    unit = here.wrap(Unit(name="m", model=model, optimizers=(torch.optim.Adam(groups, lr=9.0),)))
    assert here.states.load(unit, store).ok
    for name, value in model.state_dict().items():
        assert torch.equal(value, full[name])
    loaded = unit.optimizers[0].state_dict()
    assert loaded["param_groups"] == optimizer["param_groups"]
    for position, state in optimizer["state"].items():
        for key, value in state.items():
            assert torch.equal(loaded["state"][position][key], value)


def fail_on_rank_one():
    here, unit = trained()
    store = Store()
    here.states.save(unit, store)
    if here.batches.rank == 1:
        store.kept = {}
    else:
        store.kept = dict(store.kept)
    here.states.load(unit, store)


def test_a_failure_of_one_rank_is_heard_by_all(pool):
    errors = pool.failures(2, _InGroup(fail_on_rank_one))
    assert all(isinstance(error, CheckpointError) for error in errors)
    assert "Rank 1 could not" in str(errors[0])
    assert "no model called 'm'" in str(errors[1])


class _InGroup:
    def __init__(self, function):
        self.function = function

    def __call__(self):
        dist.init_process_group("gloo")
        return self.function()


def two_models_in_one_window(each_batch):
    """A generator whose output is used by two losses, the usual adversarial loop, over two micro-batches."""
    here = strategy()
    torch.manual_seed(0)
    made, judge = nn.Linear(2, 2), nn.Linear(2, 1)
    shared, critic = (
        here.wrap(Unit(name=name, model=model)).model for name, model in (("made", made), ("judge", judge))
    )
    for closes in (False, True):
        with ExitStack() as stack:
            if not (closes or each_batch):
                stack.enter_context(here.no_sync(shared))
                stack.enter_context(here.no_sync(critic))
            fake = shared(torch.ones(1, 2) * (here.batches.rank + 1))
            here.backward(critic(fake.detach()).sum(), sync=closes)
            judge.zero_grad()
            here.backward(critic(fake).sum(), sync=closes)
    return here.batches.all_gather_object(
        [p.grad.tolist() for p in (*made.parameters(), *judge.parameters())]
    )


@pytest.mark.parametrize("each_batch", [False, True])
def test_a_backward_of_one_model_does_not_disarm_the_watch_of_another(each_batch, pool):
    for gradients in pool.run_in_group(2, two_models_in_one_window, each_batch):
        assert gradients[0] == gradients[1]


def thawed_after_wrapping(part):
    here = strategy()
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    (model if part is None else model[part]).requires_grad_(False)
    shared = here.wrap(Unit(name="net", model=model)).model
    model.requires_grad_(True)
    x = torch.ones(1, 2) * (here.batches.rank + 1)
    try:
        here.backward(shared(x).sum())
    except CollectiveError as error:
        told = str(error)
    model.zero_grad()
    again = here.wrap(Unit(name="net", model=model)).model
    here.backward(again(x).sum())
    gradients = here.batches.all_gather_object([p.grad.tolist() for p in model.parameters()])
    return told, gradients[0] == gradients[1], shared is not None


@pytest.mark.parametrize("part", [None, 0])
def test_thawed_parameters_are_told_until_the_model_is_wrapped_again(part, pool):
    for told, equal, _ in pool.run_in_group(2, thawed_after_wrapping, part):
        assert "was frozen when the model was prepared" in told
        assert "0.weight" in told
        assert equal
