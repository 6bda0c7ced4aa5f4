"""Moving a model to its device without losing what hangs on its parameters."""

from __future__ import annotations

import torch
from torch import nn

from accel_core.protocols import Unit

from .inspection import offloads, placed_devices
from .optimizer import place_state


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def place(unit: Unit, device: torch.device) -> None:
    """Move the unit's model to ``device`` and let its optimizers follow.

    A model that was dispatched over devices, or is offloaded, stays where it is. On most hardware a
    parameter is the same object after the move; where it is not (XLA), shared parameters are shared again
    and the optimizers are given the new ones, by name.
    """
    if not unit.place or placed_devices(unit.model) or offloads(unit.model):
        return
    before = _named(unit.model)
    unit.model.to(device)
    after = _named(unit.model)
    if any(after[name] is not parameter for name, parameter in before.items()):
        _share_again(unit.model, before)
        _rebind(unit, before, _named(unit.model))
    for optimizer in unit.optimizers:
        place_state(optimizer)


def _share_again(model: nn.Module, before: dict[str, nn.Parameter]) -> None:
    first_name: dict[int, str] = {}
    for name, parameter in before.items():
        first = first_name.setdefault(id(parameter), name)
        if first != name:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, model.get_parameter(first))


def _rebind(unit: Unit, before: dict[str, nn.Parameter], after: dict[str, nn.Parameter]) -> None:
    replacement = {id(parameter): after[name] for name, parameter in before.items()}
    for optimizer in unit.optimizers:
        for group in optimizer.param_groups:
            group["params"] = [replacement.get(id(parameter), parameter) for parameter in group["params"]]
        state = optimizer.state
        for parameter in [key for key in state if id(key) in replacement]:
            state[replacement[id(parameter)]] = state.pop(parameter)


__all__ = ["place"]
