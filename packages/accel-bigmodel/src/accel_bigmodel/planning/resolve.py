"""What callers say about devices, as a device map that covers the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from accel_core.errors import ConfigError, Fault, UnknownNameError
from accel_core.spelling import nearest

from ..dtypes import AnyDtype
from .maps import Place, check_device_map, uncovered
from .planner import Asked, solved
from .solving import KEEPERS
from .strategies import STRATEGIES


def resolve_device_map(
    model: nn.Module,
    device_map: str | int | torch.device | Mapping[str, Place] | None,
    *,
    max_memory: Mapping[int | str, int | str] | None = None,
    no_split_module_classes: Sequence[str] | None = None,
    dtype: AnyDtype | None = None,
    special_dtypes: Mapping[str, AnyDtype] | None = None,
    offload_buffers: bool = False,
    fallback_allocation: bool = False,
    batch_size: int | None = None,
    sequence_length: int | None = None,
    reserve: int | str = 0,
) -> dict[str, Place] | None:
    """Return a device map for ``model`` from a strategy, one device, or a map made by hand; None from None.

    Strategies: ``"auto"`` and ``"balanced"`` spread the model evenly, ``"balanced_low_0"`` leaves the first
    accelerator as free as it can, ``"sequential"`` fills one after the other. A map by hand must give a
    device to every tensor that is saved, and name only what the model has; buffers that are not saved and
    that it forgets go where the model runs. Other options: see `plan_device_map`, which also says why. Raises
    UnknownNameError, ConfigError.
    """
    if device_map is None:
        return None
    if isinstance(device_map, Mapping):
        return _by_hand(model, device_map)
    if not isinstance(device_map, str) or device_map not in STRATEGIES:
        return {"": _place(device_map, "device map", STRATEGIES)}
    asked = Asked(
        max_memory=max_memory,
        no_split_module_classes=no_split_module_classes,
        dtype=dtype,
        special_dtypes=special_dtypes,
        offload_buffers=offload_buffers,
        fallback_allocation=fallback_allocation,
        batch_size=batch_size,
        sequence_length=sequence_length,
        reserve=reserve,
    )
    return dict(solved(model, device_map, asked)[0].device_map())


def _by_hand(model: nn.Module, device_map: Mapping[str, Place]) -> dict[str, Place]:
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}
    found: dict[str, Place] = {}
    for name, place in device_map.items():
        if name not in known:
            tensors = {name for name, _ in model.named_parameters(remove_duplicate=False)}
            tensors |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
            if name not in tensors:
                raise _unknown(model, name, known | tensors)
        found[name] = _place(place, f"device of {name!r}", ())
    check_device_map(model, found)
    main = main_of(found)
    return {**found, **dict.fromkeys(list(uncovered(model, found, saved=False)), main)}


def _unknown(model: nn.Module, name: str, known: set[str]) -> UnknownNameError:
    """Return an error with the names that help: a model may have many thousands."""
    near = nearest(name, known)
    top = {child for child, _ in model.named_children()}
    return UnknownNameError("module in the device map", name, top if near is None else top | {near})


def main_of(device_map: Mapping[str, Place]) -> Place:
    """Return the device that runs what is offloaded: the first that only runs, else the host."""
    return next((place for place in device_map.values() if str(place) not in KEEPERS), "cpu")


def _place(place: object, kind: str, others: Sequence[str]) -> Place:
    if isinstance(place, torch.device) or (
        isinstance(place, int) and not isinstance(place, bool) and place >= 0
    ):
        return place
    if not isinstance(place, str):
        raise ConfigError(
            "device map",
            [Fault(kind, place, "is no device", "give a number from 0 on, 'cpu', 'disk' or a torch.device")],
        )
    if place in KEEPERS:
        return place
    try:
        torch.device(place)
    except RuntimeError:
        accelerator = torch.accelerator.current_accelerator()
        runners = () if accelerator is None else (accelerator.type,)
        raise UnknownNameError(kind, place, [*others, *KEEPERS, *runners]) from None
    return place


__all__ = ["main_of", "resolve_device_map"]
