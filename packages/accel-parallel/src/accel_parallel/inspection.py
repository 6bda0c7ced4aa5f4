"""What a strategy must know about a unit before it changes anything: everything here only looks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.optim import Optimizer

from accel_core.errors import PrepareError
from accel_core.protocols import Unit

_SHARED_ALREADY = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "FSDPModule")
"""Class names rather than classes: importing FSDP to say no to it would cost every start-up."""


def bare(model: nn.Module) -> nn.Module:
    """Return the model inside containers of torch: data parallel ones and compiled ones, in any order."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and any(cls.__name__ in _SHARED_ALREADY[:2] for cls in type(model).__mro__):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def parameter_names(model: nn.Module) -> dict[nn.Parameter, str]:
    """Return the name of every parameter of the bare model; a shared one has the first of its names."""
    return {parameter: clean_name(name) for name, parameter in bare(model).named_parameters()}


def clean_name(name: str) -> str:
    """Return ``name`` without the ``_orig_mod`` that ``torch.compile`` around a part of the model adds."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod") if "_orig_mod" in name else name


def placed_devices(model: nn.Module) -> set[str]:
    """Return the devices that the model was dispatched to (``hf_device_map``); empty for ordinary models."""
    found: set[str] = set()
    for module in model.modules():
        device_map = module.__dict__.get("hf_device_map")
        if isinstance(device_map, dict):
            found.update(
                str(torch.device("cuda", d)) if isinstance(d, int) else str(d) for d in device_map.values()
            )
    return found


def offloads(model: nn.Module) -> bool:
    """Tell whether weights of ``model`` are there during its forwards only, brought by hooks."""
    hooks = (module.__dict__.get("_hf_hook") for module in model.modules())
    return any(getattr(each, "offload", False) for hook in hooks for each in getattr(hook, "hooks", (hook,)))


def check_not_meta(unit: Unit) -> None:
    """Raise PrepareError when a parameter or buffer has no memory: it was never loaded.

    A model whose weights are offloaded has none between its forwards; it computes, and is not trained.
    """
    for name, tensor in _tensors(unit.model):
        if tensor.is_meta:
            away = offloads(unit.model)
            if away and not unit.optimizers:
                return
            if away:
                raise PrepareError(
                    f"Weights of unit {unit.name!r} are offloaded: its optimizer has nothing to change",
                    where=f"{name}, shape {tuple(tensor.shape)}",
                    fix="train a model that is in memory; an offloaded one is prepared without an optimizer",
                )
            raise PrepareError(
                f"The model of unit {unit.name!r} is on the meta device: {name!r} has a shape but no values",
                where=f"{name}, shape {tuple(tensor.shape)}",
                fix="load weights first, or call model.to_empty(device=...) and initialise it",
            )


def check_not_shared(unit: Unit) -> None:
    """Raise PrepareError when the model, or a part of it, is already shared between processes."""
    for name, module in unit.model.named_modules():
        kind = next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in _SHARED_ALREADY), None)
        if kind is not None:
            raise PrepareError(
                f"The model of unit {unit.name!r} is already wrapped in {kind}",
                where=f"module {name or '(the model itself)'!r}, class {type(module).__name__}",
                fix="give the plain model: wrapping it is what prepare() does",
            )


def check_one_device(unit: Unit, device: torch.device) -> None:
    """Raise PrepareError when the model is spread over devices."""
    away = offloads(unit.model)
    # What is offloaded comes to the device that computes, wherever it is kept.
    spread = sorted(placed_devices(unit.model) - ({"cpu", "disk"} if away else set()))
    if len(spread) > 1:
        raise PrepareError(
            f"The model of unit {unit.name!r} is dispatched over several devices: {', '.join(spread)}",
            where="its hf_device_map",
            fix="data parallelism needs the whole model on each process's device: load it without device_map",
        )
    if (unit.place or away) and not spread:
        return
    if spread and ("disk" in spread or not _same_device(torch.device(*spread), device)):
        raise PrepareError(
            f"The model of unit {unit.name!r} was loaded on {', '.join(spread)}, this process uses {device}",
            where="its hf_device_map",
            fix="load it without device_map, or each process's copy on the process's own device",
        )
    first: tuple[str, torch.Tensor] | None = None
    for name, tensor in () if away else unit.model.named_parameters():
        if first is None:
            first = (name, tensor)
        elif tensor.device != first[1].device:
            raise PrepareError(
                f"The parameters of unit {unit.name!r} are on different devices and are not to be moved",
                where=f"{first[0]} on {first[1].device}, {name} on {tensor.device}",
                fix=f"move the model to {device}, or let prepare() place it",
            )


def _same_device(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def foreign_parameters(optimizer: Optimizer, model: nn.Module) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield ``(group, position, parameter)`` for what the optimizer holds and the model does not."""
    own = {id(parameter) for parameter in model.parameters()}
    for number, group in enumerate(optimizer.param_groups):
        for position, parameter in enumerate(group["params"]):
            if id(parameter) not in own:
                yield number, position, parameter


def check_owners(unit: Unit) -> None:
    """Raise PrepareError when an optimizer holds parameters that are not the model's."""
    for optimizer in unit.optimizers:
        for number, position, parameter in foreign_parameters(optimizer, unit.model):
            shape = tuple(parameter.shape)
            twin = next(
                (name for name, own in unit.model.named_parameters() if tuple(own.shape) == shape), None
            )
            guess = f"; it has the shape of {twin!r}: made from another copy of the model?" if twin else ""
            raise PrepareError(
                f"{type(optimizer).__name__} holds a parameter that the model of unit {unit.name!r} has not",
                where=f"param_groups[{number}]['params'][{position}], shape {shape}{guess}",
                fix="make the optimizer from the parameters of the very model object that is prepared",
            )


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


__all__ = [
    "bare",
    "check_not_meta",
    "check_not_shared",
    "check_one_device",
    "check_owners",
    "clean_name",
    "foreign_parameters",
    "offloads",
    "parameter_names",
    "placed_devices",
]
