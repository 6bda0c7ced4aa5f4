"""The programs of the strategy suite, run on every rank.

Gradients are read from what an SGD step of rate 1 does to the full state: that works however a
strategy keeps its parameters. The loss of one step is the mean over a batch that is cut evenly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from torch.nn.functional import mse_loss

from accel_core.errors import CheckpointError
from accel_core.protocols import (
    Collectives,
    GradientOps,
    LoadReport,
    Strategy,
    StrategyContext,
    Unit,
    UnitState,
)
from accel_core.testing.stores import MemorySource, MemoryStore

from .checks import close, equal

BATCH = 8


class Small(nn.Module):
    """Two layers, tied to nothing, with a buffer; in fp64."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(6, 8, dtype=torch.float64)
        self.second = nn.Linear(8, 3, dtype=torch.float64)
        self.shift = nn.Buffer(torch.rand(3, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return three numbers per row."""
        y: torch.Tensor = self.second(torch.tanh(self.first(x))) + self.shift
        return y


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the global batch of a step."""
    generator = torch.Generator().manual_seed(100 + step)
    shape = partial(torch.randn, generator=generator, dtype=torch.float64)
    return shape(BATCH, 6), shape(BATCH, 3)


@dataclass
class Bench:
    """A strategy on this rank, beside a plain model."""

    strategy: Strategy
    context: StrategyContext
    tolerance: float

    def unit(self, seed: int = 0, momentum: float = 0.0) -> Unit:
        """Return a wrapped unit of the small model with SGD of rate 1 (0.1 with momentum)."""
        model = Small(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1 if momentum else 1.0, momentum=momentum)
        return self.wrapped(Unit(name="small", model=model, optimizers=(optimizer,)))

    def wrapped(self, unit: Unit) -> Unit:
        """Check and wrap."""
        self.strategy.check(unit)
        return self.strategy.wrap(unit)

    def mine(self, value: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of a global batch, on the device."""
        batches = self.strategy.batches
        return value.chunk(batches.world_size)[batches.rank].to(self.context.device)

    def backward(
        self, unit: Unit, step: int, *, part: slice = slice(None), weight: float = 1.0, sync: bool = True
    ) -> float:
        """Go forward and backward on this rank's rows of the batch; return the loss over all ranks."""
        x, y = (self.mine(value[part]) for value in batch(step))
        loss = mse_loss(unit.model(x), y) * weight
        self.strategy.backward(loss, sync=sync)
        return float(self.strategy.batches.all_reduce(loss.detach(), "mean"))

    def full(self, unit: Unit) -> dict[str, torch.Tensor]:
        """Return a copy of the full state, on every rank and on the CPU."""
        values = {
            name: value.detach().cpu().clone() for name, value in self.strategy.states.full(unit).items()
        }
        complete: dict[str, torch.Tensor] = self.context.collectives.broadcast_object(values)
        return complete

    def compare(self, unit: Unit, plain: nn.Module, what: str) -> None:
        """Compare the full state with a plain model's."""
        found, wanted = self.full(unit), plain.state_dict()
        equal(sorted(found), sorted(wanted), f"{what}: names")
        for name, value in wanted.items():
            close(found[name], value, f"{what}: {name}", self.tolerance)

    def gradients(self, unit: Unit, before: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Step with rate 1 and return the gradients that the step applied."""
        unit.optimizers[0].step()
        after = self.full(unit)
        unit.optimizers[0].zero_grad()
        return {name: before[name] - value for name, value in after.items() if "shift" not in name}


def _backward(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = mse_loss(model(x), y)
    torch.autograd.backward(loss)
    return loss


def run_check(
    program: Callable[[Bench], None],
    factory: Callable[[StrategyContext], Strategy],
    make_context: Callable[[], StrategyContext],
    tolerance: float,
) -> None:
    """Build the strategy and run one check."""
    context = make_context()
    program(Bench(factory(context), context, tolerance))


def plain_gradients(
    step: int, seed: int = 0, change: Callable[[nn.Module], None] | None = None
) -> dict[str, torch.Tensor]:
    """Return the gradients of plain torch on the whole batch, changed in place if asked."""
    model = Small(seed)
    x, y = batch(step)
    _backward(model, x, y)
    if change is not None:
        change(model)
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def _compare_gradients(
    bench: Bench, found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> None:
    equal(sorted(found), sorted(wanted), "names of the gradients")
    # Before minus after cancels digits: relative to the weights, not to the gradients.
    scale = max(1.0, *(1.0 / value.abs().max().item() for value in wanted.values()))
    for name, value in wanted.items():
        close(found[name], value, f"gradient of {name}", bench.tolerance * scale)


def check_parts(bench: Bench) -> None:
    """Look at the attributes."""
    strategy, world = bench.strategy, bench.context.collectives.world_size
    equal(isinstance(strategy, Strategy), True, f"{strategy!r} has every method of Strategy")
    equal(bool(strategy.name), True, f"name {strategy.name!r} is not empty")
    for part, protocol in (
        (strategy.batches, Collectives),
        (strategy.gradients, GradientOps),
        (strategy.states, UnitState),
    ):
        equal(isinstance(part, protocol), True, f"{part!r} has every method of {protocol.__name__}")
    size = strategy.batches.world_size
    equal(world % size, 0, f"processes left over by {size} different batches on {world} processes")


def check_wrap(bench: Bench) -> None:
    """Wrap a unit with two optimizers and two schedulers."""
    model = Small()
    optimizers = tuple(
        torch.optim.SGD(part.parameters(), lr=lr) for part, lr in ((model.first, 0.5), (model.second, 0.25))
    )
    schedulers = tuple(torch.optim.lr_scheduler.StepLR(optimizer, 1) for optimizer in optimizers)
    unit = bench.wrapped(Unit(name="two", model=model, optimizers=optimizers, schedulers=schedulers))
    equal(unit.name, "two", "name")
    equal([item.param_groups[0]["lr"] for item in unit.optimizers], [0.5, 0.25], "rates of the optimizers")
    equal(len(unit.schedulers), 2, "schedulers")
    bench.backward(unit, 0)
    before = bench.full(unit)
    for optimizer in unit.optimizers:
        optimizer.step()
    for name, value in bench.full(unit).items():
        changed = not torch.equal(value, before[name])
        equal(changed, "shift" not in name, f"{name} changed in a step of both optimizers")


def check_unwrap(bench: Bench) -> None:
    """Unwrap wrapped, unwrapped and foreign models."""
    model = Small()
    names = [name for name, _ in model.named_parameters()]
    unit = bench.wrapped(
        Unit(name="small", model=model, optimizers=(torch.optim.SGD(model.parameters(), lr=1.0),))
    )
    inner = bench.strategy.unwrap(unit.model)
    equal(inner is model, True, "unwrap(wrap(model)) is the model")
    equal([name for name, _ in inner.named_parameters()], names, "parameter names after unwrapping")
    equal(bench.strategy.unwrap(inner) is inner, True, "unwrap(unwrapped) is the same object")
    other = Small()
    equal(
        bench.strategy.unwrap(other) is other, True, "unwrap of a model that was never wrapped is that model"
    )


def check_parity(bench: Bench) -> None:
    """Train three steps beside a plain model."""
    unit, plain = bench.unit(), Small()
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0)
    for step in range(3):
        x, y = batch(step)
        loss = _backward(plain, x, y)
        found = bench.backward(unit, step)
        close(
            torch.tensor(found, dtype=torch.float64), loss.detach(), f"loss of step {step}", bench.tolerance
        )
        if step == 0:
            _compare_gradients(bench, bench.gradients(unit, bench.full(unit)), plain_gradients(0))
        else:
            unit.optimizers[0].step()
            unit.optimizers[0].zero_grad()
        optimizer.step()
        optimizer.zero_grad()
        bench.compare(unit, plain, f"weights after step {step}")


def check_same_start(bench: Bench) -> None:
    """Build another model on every rank."""
    unit = bench.unit(seed=bench.context.collectives.rank)
    bench.compare(unit, Small(0), "weights after wrapping")
    bench.backward(unit, 0)
    _compare_gradients(bench, bench.gradients(unit, bench.full(unit)), plain_gradients(0))


def check_accumulation(bench: Bench) -> None:
    """Cut a batch into two micro-batches, twice."""
    unit, plain = bench.unit(), Small()
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0)
    for step in range(2):
        x, y = batch(step)
        _backward(plain, x, y)
        optimizer.step()
        optimizer.zero_grad()
        half = BATCH // 2
        with bench.strategy.no_sync(unit.model):
            bench.backward(unit, step, part=slice(None, half), weight=0.5, sync=False)
        bench.backward(unit, step, part=slice(half, None), weight=0.5)
        unit.optimizers[0].step()
        unit.optimizers[0].zero_grad()
        bench.compare(unit, plain, f"weights after window {step}")


@dataclass(frozen=True)
class ClipNorm:
    """Clip the norm, and compare gradients and norm with torch's."""

    max_norm: float
    norm_type: float

    def __call__(self, bench: Bench) -> None:
        """Run on one rank."""
        norms: list[torch.Tensor] = []

        def clip(model: nn.Module) -> None:
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), self.max_norm, self.norm_type))

        wanted = plain_gradients(0, change=clip)
        unit = bench.unit()
        before = bench.full(unit)
        bench.backward(unit, 0)
        norm = bench.strategy.gradients.clip_norm_(
            list(unit.model.parameters()), self.max_norm, self.norm_type
        )
        close(torch.as_tensor(norm).detach().cpu().double(), norms[0], "the norm returned", bench.tolerance)
        _compare_gradients(bench, bench.gradients(unit, before), wanted)


def check_clip_value(bench: Bench) -> None:
    """Clamp."""
    limit = 0.01
    wanted = plain_gradients(0, change=lambda model: nn.utils.clip_grad_value_(model.parameters(), limit))
    unit = bench.unit()
    before = bench.full(unit)
    bench.backward(unit, 0)
    bench.strategy.gradients.clip_value_(list(unit.model.parameters()), limit)
    _compare_gradients(bench, bench.gradients(unit, before), wanted)


def check_scale(bench: Bench) -> None:
    """Multiply."""
    unit = bench.unit()
    # No gradients yet: nothing to do, and no error.
    bench.strategy.gradients.scale_(list(unit.model.parameters()), 3.0)
    before = bench.full(unit)
    bench.backward(unit, 0)
    bench.strategy.gradients.scale_(iter(list(unit.model.parameters())), 3.0)
    wanted = {name: value * 3.0 for name, value in plain_gradients(0).items()}
    _compare_gradients(bench, bench.gradients(unit, before), wanted)


def check_full(bench: Bench) -> None:
    """Take the full state of one model and load it into another."""
    source, target = bench.unit(seed=1), bench.unit(seed=2)
    bench.compare(source, Small(1), "full state")
    bench.compare(target, Small(2), "full state of the other")
    report = bench.strategy.states.load_full(target, bench.full(source))
    equal(report.ok, True, f"ok of {report}")
    equal(sorted(report.restored), sorted(Small().state_dict()), "names restored")
    bench.compare(target, Small(1), "full state after load_full")


@dataclass(frozen=True)
class WrongState:
    """Load a state with one fault."""

    fault: str

    def __call__(self, bench: Bench) -> None:
        """Run on one rank."""
        states, values = bench.strategy.states, Small(1).state_dict()
        name = "second.bias"
        if self.fault == "missing":
            del values[name]
        elif self.fault == "unexpected":
            name = "third.bias"
            values[name] = torch.zeros(2)
        else:
            values[name] = torch.zeros(7, dtype=torch.float64)
        unit = bench.unit(seed=2)
        try:
            states.load_full(unit, values)
        except CheckpointError as error:
            equal(name in str(error), True, f"the error names {name}; it says: {error}")
        else:
            raise AssertionError(f"strict load_full accepted a state with {name} {self.fault}")
        report: LoadReport = states.load_full(unit, values, strict=False)
        equal(list(getattr(report, self.fault)), [name], f"{self.fault} of the report")
        equal(report.ok, False, "ok of the report")
        found = bench.full(unit)
        close(found["first.weight"], values["first.weight"], "first.weight, which was right", 0.0)


def check_save_load(bench: Bench) -> None:
    """Save after two steps with momentum, load into a fresh unit, and take the third step in both."""
    unit = bench.unit(seed=1, momentum=0.9)
    for step in range(2):
        bench.backward(unit, step)
        unit.optimizers[0].step()
        unit.optimizers[0].zero_grad()
    store = MemoryStore()
    bench.strategy.states.save(unit, store.sink())
    first, *others = bench.context.collectives.all_gather_object(store)
    whole = first.merged(others)
    fresh = bench.unit(seed=2, momentum=0.9)
    report = bench.strategy.states.load(fresh, whole.source())
    equal(report.ok, True, f"ok of {report}")
    for each in (unit, fresh):
        bench.backward(each, 2)
        each.optimizers[0].step()
    wanted = bench.full(unit)
    for name, value in bench.full(fresh).items():
        close(value, wanted[name], f"{name} one step after loading", 0.0)


def check_load_nothing(bench: Bench) -> None:
    """Load from an empty store."""
    try:
        bench.strategy.states.load(bench.unit(), MemorySource(MemoryStore()))
    except CheckpointError:
        return
    raise AssertionError("load of an empty checkpoint raised no CheckpointError")


def check_evaluation(bench: Bench) -> None:
    """Wrap models for evaluation."""
    frozen = Small(1).requires_grad_(requires_grad=False)
    for name, model in (("trainable", Small(1)), ("frozen", frozen), ("without parameters", nn.Tanh())):
        plain = copy.deepcopy(model)
        unit = bench.wrapped(replace(Unit(name="eval", model=model, evaluation=True)))
        x, _ = batch(0)
        with torch.no_grad():
            found = unit.model(x.to(bench.context.device)).cpu()
            close(found, plain(x), f"output of a {name} model", bench.tolerance)


def check_inputs(bench: Bench) -> None:
    """Enter the context without buffers around a step."""
    unit = bench.unit()
    before = bench.full(unit)
    with bench.strategy.inputs():
        bench.backward(unit, 0)
    _compare_gradients(bench, bench.gradients(unit, before), plain_gradients(0))


__all__ = ["Bench", "ClipNorm", "Small", "WrongState", "run_check"]
