"""The accumulation window as state: how far it has come, and the gradients that it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from accel_core.errors import CheckpointError, StateError
from accel_core.tally import SampleTally
from accel_parallel.inspection import parameter_names

if TYPE_CHECKING:
    from accel_core.window import GradientWindow

    from .preparation import Registry
    from .weighting import Weighting


def check_place(window: GradientWindow, registry: Registry) -> None:
    """Raise StateError where the state of a run cannot be told: between what belongs together."""
    what = ""
    fix = "save after optimizer.step(), at the end of the loop's body or outside of it"
    if window.alone or window.uneven:
        what = "the ranks do not step together here"
        fix = "save outside of LocalSGD and join_uneven_inputs"
    elif window.inside and not window.filled:
        what = "the batch in hand is counted as read, and no gradient came of it yet"
    elif window.inside and window.sync_gradients and _nothing_applied(registry):
        what = "the gradients of the closing micro-batch are there, and no optimizer has applied them"
    elif is_open(window) and (sparse := _sparse(registry)):
        what = f"the open window holds sparse gradients, of {sparse}, which files of tensors have no form for"
        fix = "save at the end of a window"
    if what:
        raise StateError(f"The state cannot be saved here: {what}", where=_where(window), fix=fix)


def _where(window: GradientWindow) -> str:
    if not window.position:
        return "outside of a window"
    return f"micro-batch {window.position} of {window.num_steps}"


def _nothing_applied(registry: Registry) -> bool:
    """Tell whether every optimizer has gradients in hand that it has not applied."""
    held = [each for each in registry.optimizers if not each.applied]
    return bool(held) and len(held) == len(registry.optimizers) and all(_has_gradients(each) for each in held)


def _sparse(registry: Registry) -> str:
    every = gradients(registry).items()
    return ", ".join(name for name, gradient in every if gradient.layout is not torch.strided)


def _has_gradients(optimizer: Any) -> bool:
    found = (p.grad for group in optimizer.param_groups for p in group["params"])
    return any(gradient is not None and _not_zero(gradient) for gradient in found)


def _not_zero(gradient: torch.Tensor) -> bool:
    # Sparse gradients cannot be counted so; cleared ones have no elements.
    return bool(gradient.count_nonzero() if gradient.layout is torch.strided else gradient._nnz())


def is_open(window: GradientWindow) -> bool:
    """Tell whether micro-batches were counted whose gradients are still to be applied."""
    return window.position > 0 and not window.sync_gradients


def window_state(window: GradientWindow, registry: Registry, weighting: Weighting | None) -> dict[str, Any]:
    """Return what this rank knows of the window, as JSON; of one that is open, where it stands."""
    state: dict[str, Any] = {"num_steps": window.num_steps, "weighings": window.weighings}
    if weighting is not None:
        state["reference"] = weighting.progress()["reference"]
    tally = window.tally
    if tally is not None:
        state["tally"] = [tally.total, tally.notes, tally.unknown]
    if not is_open(window):
        return state
    chosen = list(map(id, window.models))
    every = chosen == list(map(id, registry.models))
    state["open"] = {
        "position": window.position,
        "divisor": window.divisor,
        "weighted": window.weighted,
        "unsettled": window.unsettled,
        "models": None if every else [unit.name for unit in registry.units if id(unit.model) in chosen],
        "weights": None if weighting is None else weighting.progress(),
    }
    return state


def check_open(
    window: GradientWindow, states: Sequence[Mapping[str, Any]], *, scaled: bool, scales: bool
) -> None:
    """Raise CheckpointError where an open window was saved that this run cannot go on with.

    ``scaled``: its gradients are multiplied by a loss scale. ``scales``: those of this run are.
    """
    opened = states[0].get("open")
    if opened is None:
        return
    length = states[0]["num_steps"]
    what, go_on = "", ""
    if length != window.num_steps:
        what = f"an accumulation window of {length} micro-batches, this run has windows of {window.num_steps}"
        go_on = f"gradient_accumulation_steps={length} and change it"
    elif scaled is not scales:
        words = ("with", "without") if scaled else ("without", "with")
        what = f"an accumulation window whose gradients are {words[0]} a loss scale, this run is {words[1]}"
        go_on = "the mixed_precision of the run that saved it and change it"
    if what:
        raise CheckpointError(
            f"It was saved within {what}",
            where=f"after micro-batch {opened['position']} of {length}",
            fix=f"go on with {go_on} at the end of a window, or use a checkpoint that was saved there",
        )


def restore_window(
    window: GradientWindow, states: Sequence[Mapping[str, Any]], rank: int, world: int, registry: Registry
) -> Mapping[str, Any] | None:
    """Stand where the window was saved; return its weights, if weights were ever given.

    ``states``: of all ranks that saved.
    """
    window.restart()
    window.weight = None
    own = states[rank] if len(states) == world else states[0]
    window.weighings = own["weighings"]
    if own.get("tally") is not None:
        window.tally = window.tally or SampleTally()
        window.tally.total, window.tally.notes, window.tally.unknown = own["tally"]
    opened = own.get("open")
    if opened is None:
        # By this the sums of the next window are divided first, and half precision rounds them then. Another
        # number of ranks has sums of another size.
        reference = own.get("reference") if len(states) == world else None
        return {"sum": 0.0, "latest": 0.0, "kind": 0, "factor": None, "reference": reference}
    window.position, window.divisor = opened["position"], opened["divisor"]
    window.weighted, window.unsettled = opened["weighted"], opened["unsettled"]
    window.sync_gradients = False
    names = opened["models"]
    window.models = (
        registry.models if names is None else tuple(u.model for u in registry.units if u.name in names)
    )
    return _weights(states, rank, world)


def _weights(states: Sequence[Mapping[str, Any]], rank: int, world: int) -> Mapping[str, Any] | None:
    each = [state["open"]["weights"] for state in states]
    if each[0] is None:
        return None
    if len(states) == world:
        return each[rank]  # type: ignore[no-any-return]
    # What all have counted is rank 0's, as their gradients are.
    return {**each[0], "sum": math.fsum(one["sum"] for one in each) if rank == 0 else 0.0}


def gradients(registry: Registry) -> dict[str, torch.Tensor]:
    """Return the gradients of an open window by ``unit.parameter``."""
    return {
        f"{unit.name}.{name}": parameter.grad
        for unit in registry.units
        for parameter, name in parameter_names(unit.model).items()
        if parameter.grad is not None
    }


def cleared(window: GradientWindow, registry: Registry) -> list[str]:
    """Return whose gradients are zeros, or will be before the next backward, by ``unit.parameter``.

    An optimizer moves such parameters on, by momentum and weight decay, and leaves out those without a
    gradient. It matters for those that the next update does not use.
    """
    if is_open(window):
        return []
    held = ((name, each) for name, each in gradients(registry).items() if each.layout is torch.strided)
    return [name for name, gradient in held if not (window.inside and _not_zero(gradient))]


def restore_cleared(registry: Registry, names: Sequence[str]) -> None:
    """Give zeros to those that had them."""
    wanted = set(names)
    for unit in registry.units if wanted else ():
        for parameter, name in parameter_names(unit.model).items():
            if f"{unit.name}.{name}" in wanted:
                parameter.grad = torch.zeros_like(parameter)


def restore_gradients(
    registry: Registry,
    saved: Sequence[Mapping[str, torch.Tensor]],
    rank: int,
    world: int,
    *,
    weighted: bool,
) -> None:
    """Give the parameters what the open window has accumulated on this rank.

    On another number of ranks rank 0 has it all: synchronised gradients are a mean over the ranks, so a sum
    over N ranks counts for world/N on one of them, and as it is where weights are divided by later.
    """
    same = len(saved) == world
    for unit in registry.units:
        for parameter, name in parameter_names(unit.model).items():
            key = f"{unit.name}.{name}"
            if same:
                found = saved[rank].get(key)
            else:
                each = [part[key] for part in saved if key in part]
                found = _joined(each, 1.0 if weighted else world / len(saved), rank)
            if found is not None:
                parameter.grad = found.to(parameter.device, copy=True)


def _joined(each: Sequence[torch.Tensor], factor: float, rank: int) -> torch.Tensor | None:
    if not each:
        return None
    if rank:
        return torch.zeros_like(each[0])
    total = each[0].clone()
    for other in each[1:]:
        total += other
    return total if factor == 1.0 else total * factor


def forget_gradients(registry: Registry) -> None:
    """Drop gradients of the run that was left: they are no part of the one that goes on."""
    for parameter in registry.parameters():
        parameter.grad = None


__all__ = [
    "check_open",
    "check_place",
    "cleared",
    "forget_gradients",
    "gradients",
    "is_open",
    "restore_cleared",
    "restore_gradients",
    "restore_window",
    "window_state",
]
