"""What ``prepare`` does: sort objects by role, form units, wrap them, and remember what came of what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from accel_core.errors import PrepareError
from accel_core.protocols import Strategy, Unit
from accel_parallel import AcceleratedOptimizer, AcceleratedScheduler

if TYPE_CHECKING:
    from .units import PreparedUnit

ROLES: tuple[tuple[str, type[Any]], ...] = (
    ("loader", DataLoader),
    ("model", nn.Module),
    ("optimizer", Optimizer),
    ("scheduler", LRScheduler),
)


def role_of(thing: object) -> str | None:
    """Return what ``thing`` is to training, or None for what ``prepare`` passes through."""
    if isinstance(thing, AcceleratedScheduler):
        return "scheduler"
    return next((role for role, cls in ROLES if isinstance(thing, cls)), None)


@dataclass(slots=True)
class Registry:
    """What one ``Accelerator`` prepared, in order, and which original each came from."""

    models: list[nn.Module] = field(default_factory=list)
    optimizers: list[AcceleratedOptimizer] = field(default_factory=list)
    schedulers: list[AcceleratedScheduler] = field(default_factory=list)
    loaders: list[Any] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)
    named: dict[str, PreparedUnit] = field(default_factory=dict)
    """What was prepared under a name of the user's."""
    custom: dict[str, Any] = field(default_factory=dict)
    """What is saved and restored beside it, by name."""
    _made: dict[int, tuple[object, object]] = field(default_factory=dict)

    def remember(self, original: object, prepared: object) -> None:
        """Note that ``prepared`` came of ``original``; both are kept alive so that ids stay unique."""
        self._made[id(original)] = (original, prepared)
        self._made[id(prepared)] = (prepared, prepared)

    def made_of(self, thing: object) -> object | None:
        """Return what ``thing`` became, or ``thing`` if it is a result itself, or None if it is new."""
        entry = self._made.get(id(thing))
        return entry[1] if entry is not None else None

    def unit_of(self, prepared: object) -> Unit | None:
        """Return the unit of a prepared model."""
        return next((unit for unit in self.units if unit.model is prepared), None)

    def parameter_ids(self) -> set[int]:
        """Return the identities of the parameters of every prepared model."""
        return {id(parameter) for unit in self.units for parameter in unit.model.parameters()}

    def parameters(self) -> list[nn.Parameter]:
        """Return every parameter of the prepared models and optimizers once, shared ones too."""
        found = {id(parameter): parameter for model in self.models for parameter in model.parameters()}
        for optimizer in self.optimizers:
            found.update({id(parameter): parameter for _, _, parameter in _owned(optimizer)})
        return list(found.values())

    def clear(self) -> None:
        """Forget everything."""
        kept = (
            self.models,
            self.optimizers,
            self.schedulers,
            self.loaders,
            self.units,
            self.named,
            self.custom,
            self._made,
        )
        for each in kept:
            each.clear()


def _owned(optimizer: Optimizer) -> Iterator[tuple[int, int, nn.Parameter]]:
    for group_index, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            yield group_index, index, parameter


def reject_foreign(thing: object) -> None:
    """Raise PrepareError for a wrapper that this ``Accelerator`` does not know: it would act twice."""
    if isinstance(thing, (AcceleratedOptimizer, AcceleratedScheduler)):
        role = "optimizer" if isinstance(thing, AcceleratedOptimizer) else "scheduler"
        raise PrepareError(
            f"This {type(thing).__name__} was prepared by another Accelerator, or before free_memory()",
            where=repr(getattr(thing, role)).splitlines()[0],
            fix=f"give its own {role} to prepare(): the attribute .{role} holds it",
        )


def check_ownership(optimizer: Optimizer, known: set[int]) -> None:
    """Raise PrepareError when ``optimizer`` updates parameters that no prepared model has.

    Such an optimizer trains nothing that is used: typically it was made from another copy of the model.
    """
    for group, index, parameter in _owned(optimizer):
        if id(parameter) not in known:
            raise PrepareError(
                f"{type(optimizer).__name__} holds a parameter that belongs to no prepared model",
                where=f"param_groups[{group}]['params'][{index}], shape {tuple(parameter.shape)}",
                fix="create the optimizer from the parameters of the model that is given to prepare()",
            )


def check_when_stepped(optimizer: AcceleratedOptimizer, registry: Registry) -> None:
    """Let the first step of ``optimizer``, prepared before any model, look whom its parameters belong to."""

    def look() -> None:
        known = registry.parameter_ids()
        # A loop may train parameters that belong to no model at all.
        if known:
            check_ownership(optimizer.optimizer, known)

    optimizer.before_first_step = look


def form_units(
    models: Sequence[tuple[str, nn.Module, bool]], optimizers: Sequence[Optimizer], *, train: bool
) -> list[Unit]:
    """Return one unit per ``(name, model, place)``, each with the optimizers that hold only its parameters.

    An optimizer over several models belongs to none of the units and stays as it is.
    """
    units = []
    for name, model, place in models:
        own = {id(parameter) for parameter in model.parameters()}
        mine = tuple(opt for opt in optimizers if all(id(p) in own for _, _, p in _owned(opt)))
        units.append(Unit(name=name, model=model, optimizers=mine, evaluation=not train, place=place))
    return units


def wrap_units(strategy: Strategy, units: Sequence[Unit]) -> list[Unit]:
    """Check all units before the first is changed, then wrap them."""
    for unit in units:
        strategy.check(unit)
    return [strategy.wrap(unit) for unit in units]


def optimizers_of(
    scheduler: Any, prepared: Callable[[object], object | None], fallback: Sequence[AcceleratedOptimizer]
) -> list[AcceleratedOptimizer]:
    """Return the prepared optimizers that ``scheduler`` drives.

    Raises PrepareError when its optimizer was not prepared: it would be stepped without regard to
    accumulation, skipped steps and the number of processes.
    """
    raw = getattr(scheduler, "optimizer", None)
    if raw is None:
        return list(fallback)
    found = prepared(raw)
    if isinstance(found, AcceleratedOptimizer):
        return [found]
    raise PrepareError(
        f"The optimizer of {type(scheduler).__name__} was not prepared",
        where=f"{type(raw).__name__} with {len(raw.param_groups)} parameter group(s)",
        fix="give the optimizer to prepare() in the same call or before the scheduler",
    )
