"""The parts of a run by name: units with their optimizers, optimizers of several models, hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from accel_core.errors import CheckpointError
from accel_core.protocols import LoadReport, Unit
from accel_parallel.encoding import owned
from accel_parallel.inspection import parameter_names
from accel_parallel.optimizer_state import compare, load_named_state, named_state

from . import checkpoint_layout as layout

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

    from accel_core.protocols import StateSource, Strategy
    from accel_parallel import AcceleratedOptimizer

    from .preparation import Registry


def stored_tensors(source: StateSource, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors that belong to the value stored as ``name``, in memory of their own."""
    return owned(_beside(source, name))


def _beside(source: StateSource, name: str) -> Mapping[str, torch.Tensor]:
    label = f"{name}/tensors"
    return source.tensors(label) if label in set(source.names()) else {}


def names_of(registry: Registry, role: str) -> Iterator[tuple[str, Any]]:
    """Yield what was prepared as ``scheduler`` or ``dataloader``, each under a name of its own.

    Those of a named unit are called after it, the others by their order: ``scheduler``, ``scheduler_1``.
    """
    every = registry.schedulers if role == "scheduler" else registry.loaders
    owners = {}
    for name, unit in registry.named.items():
        parts = unit.schedulers if role == "scheduler" else unit.loaders
        for number, part in enumerate(parts):
            owners[id(part)] = f"{name}/{role}" + (f"_{number}" if number else "")
    count = 0
    for each in every:
        if id(each) in owners:
            yield owners[id(each)], each
            continue
        yield role + (f"_{count}" if count else ""), each
        count += 1


class Parts:
    """The models of a run with their optimizers, told apart once for a save or a load."""

    def __init__(self, registry: Registry) -> None:
        self.units: list[Unit] = []
        """Every unit with all optimizers that hold its parameters only, whenever they were prepared."""
        named: dict[nn.Parameter, str] = {}
        waiting = {id(each.optimizer): each for each in registry.optimizers}
        found: dict[str, AcceleratedOptimizer] = {}
        for unit in registry.units:
            own = parameter_names(unit.model)
            named.update({parameter: f"{unit.name}.{name}" for parameter, name in own.items()})
            mine = [each for each in waiting.values() if all(p in own for p in _held(each))]
            for number, each in enumerate(mine):
                del waiting[id(each.optimizer)]
                found[layout.shown(f"{unit.name}/optimizer_{number}")] = each
            self.units.append(replace(unit, optimizers=tuple(each.optimizer for each in mine)))
        shared = {f"shared_optimizer_{number}": each for number, each in enumerate(waiting.values())}
        self.wrappers: dict[str, AcceleratedOptimizer] = found | shared
        """Every prepared optimizer by the name of its state."""
        self.loose = LooseOptimizers({name: each.optimizer for name, each in shared.items()}, named)


def _held(optimizer: AcceleratedOptimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _sources(
    strategy: Strategy, units: Sequence[Unit], source: StateSource, external: Sequence[str], *, strict: bool
) -> Iterator[tuple[Unit, StateSource | None]]:
    """Yield each unit with what it is loaded from; None where nothing is stored and that is allowed."""
    stored = set(source.names())
    for unit in units:
        own = f"{unit.name}/model"
        if not strict and unit.name not in external and layout.shown(own) not in stored:
            yield unit, None
            continue
        instead = {own: strategy.states.full(unit)} if unit.name in external else {}
        yield unit, layout.LaidOutSource(source, instead)


def check_units(
    strategy: Strategy, units: Sequence[Unit], source: StateSource, external: Sequence[str], *, strict: bool
) -> None:
    """Raise what `load_units` would, before any of several units is changed, as far as the strategy can."""
    check = getattr(strategy.states, "check", None)
    if check is not None:
        for unit, found in _sources(strategy, units, source, external, strict=strict):
            if found is not None:
                check(unit, found, strict=strict)


def load_units(
    strategy: Strategy, units: Sequence[Unit], source: StateSource, external: Sequence[str], *, strict: bool
) -> LoadReport:
    """Give models and optimizers their state; models of ``external`` units stay as they are. Collective."""
    restored: list[str] = []
    missing: list[str] = []
    unexpected: list[str] = []
    mismatched: dict[str, str] = {}
    for unit, found in _sources(strategy, units, source, external, strict=strict):
        if found is None:
            missing.append(f"{unit.name}/model")
            continue
        report = strategy.states.load(unit, found, strict=strict)
        for kept, names in (
            (restored, report.restored),
            (missing, report.missing),
            (unexpected, report.unexpected),
        ):
            # Optimizers bear the name of their unit already.
            kept += [name if name.startswith(f"{unit.name}/") else f"{unit.name}.{name}" for name in names]
        mismatched.update({f"{unit.name}.{name}": why for name, why in report.mismatched.items()})
    return LoadReport(tuple(restored), tuple(missing), tuple(unexpected), mismatched)


class LooseOptimizers:
    """Optimizers that hold the parameters of several models, or of none that was prepared."""

    def __init__(self, optimizers: Mapping[str, Optimizer], parameters: Mapping[nn.Parameter, str]) -> None:
        self._optimizers = optimizers
        self._parameters = parameters

    def names(self) -> list[str]:
        """Return their names."""
        return list(self._optimizers)

    def encoded(self) -> dict[str, tuple[Any, dict[str, torch.Tensor]]]:
        """Return their states. Raises CheckpointError for a parameter that no prepared model has."""
        return {name: named_state(each, self._parameters, name) for name, each in self._optimizers.items()}

    def check(self, source: StateSource) -> None:
        """Raise CheckpointError where the stored parameters are others, before anything is changed."""
        for name, optimizer, content in self._stored(source):
            missing, unexpected = compare(optimizer, content, self._parameters, name)
            if missing or unexpected:
                raise CheckpointError(
                    f"{name} holds other parameters than the checkpoint",
                    where=f"missing: {', '.join(missing) or '-'}; unexpected: {', '.join(unexpected) or '-'}",
                    fix="build it from the same models as in the run that saved it",
                )

    def load(self, source: StateSource) -> list[str]:
        """Give them back what is stored of them; return whom."""
        found = []
        for name, optimizer, content in self._stored(source):
            load_named_state(optimizer, content, _beside(source, name), self._parameters)
            found.append(name)
        return found

    def _stored(self, source: StateSource) -> Iterator[tuple[str, Any, Any]]:
        stored = set(source.names())
        for name, optimizer in self._optimizers.items():
            if name in stored:
                yield name, optimizer, source.json(name)


class HookStates:
    """What communication hooks keep from step to step: how far they are, and what each rank still owes.

    What is owed lies in the order of torch's buckets, which in the first step of a process is another than
    in all later ones: given back, it would be added to the wrong parameters. So only a hook that owes nothing
    yet, which has not begun to compress, goes on.
    """

    def __init__(self, strategy: Strategy, registry: Registry) -> None:
        self._states: dict[str, Any] = {}
        tell = getattr(strategy, "comm_state", None)
        if tell is not None:
            found = ((unit.name, tell(unit.model)) for unit in registry.units)
            self._states = {name: state for name, state in found if state is not None}

    def told(self) -> dict[str, Any]:
        """Return how far each is, as JSON."""
        return {
            name: {"iter": getattr(state, "iter", 0), "owes": bool(getattr(state, "error_dict", None))}
            for name, state in self._states.items()
        }

    def check(self, told: Mapping[str, Any]) -> None:
        """Raise CheckpointError where something was owed."""
        owing = [name for name in self._states if told.get(name, {}).get("owes")]
        if owing:
            raise CheckpointError(
                f"The communication hook of {', '.join(owing)} had compressed gradients, and what each rank"
                " still owed of them cannot be given back",
                where="comm_hook of DistributedDataParallelKwargs",
                fix="load_state(strict=False) lets it begin anew, with gradients that are not compressed"
                " for the first start_powerSGD_iter steps; what was owed is lost",
            )

    def go_on(self, told: Mapping[str, Any]) -> None:
        """Stand where ``told`` was told; one that owed something begins anew."""
        for name, state in self._states.items():
            known = told.get(name)
            if known is None or not hasattr(state, "iter"):
                continue
            state.iter = 0 if known["owes"] else known["iter"]
            for memory in ("error_dict", "p_memory_dict", "q_memory_dict"):
                getattr(state, memory).clear()


__all__ = [
    "HookStates",
    "LooseOptimizers",
    "Parts",
    "check_units",
    "load_units",
    "names_of",
    "stored_tensors",
]
