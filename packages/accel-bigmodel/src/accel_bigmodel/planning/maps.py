"""Device maps: made, checked, and written shortly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

from accel_core.errors import ConfigError, Fault

from ..dtypes import AnyDtype
from .memory import get_max_memory
from .outline import merged_map
from .reasons import plan_of
from .solving import solve
from .walking import outline_of

Place = int | str | torch.device
Device = TypeVar("Device")
_MOST_SHOWN = 5


def infer_auto_device_map(
    model: nn.Module,
    max_memory: Mapping[int | str, int | str] | None = None,
    no_split_module_classes: Sequence[str] | None = None,
    dtype: AnyDtype | None = None,
    special_dtypes: Mapping[str, AnyDtype] | None = None,
    verbose: bool = False,
    clean_result: bool = True,
    offload_buffers: bool = False,
    fallback_allocation: bool = False,
) -> dict[str, int | str]:
    """Return a device for every part of ``model``, filled in its order: accelerators, ``"cpu"``, ``"disk"``.

    When something is offloaded, the first accelerator in use keeps room for the largest such layer and,
    unless ``offload_buffers``, for the buffers of all of them. Modules of ``no_split_module_classes`` (by
    default those that the model lists itself) and modules that share a parameter are on one device.

    ``max_memory``: see `get_max_memory`. ``dtype``, ``special_dtypes``: sizes as if the model were cast, see
    `compute_module_sizes`. ``verbose``: print why. ``clean_result``: name whole modules where they lie
    together, instead of every smallest part. ``fallback_allocation``: where the next part is too large for a
    device, take the first later ones that fit it. Raises as `get_max_memory`.
    """
    outline = outline_of(model, no_split_module_classes, dtype, special_dtypes)
    limits = get_max_memory(max_memory)
    solution = solve(outline, limits, offload_buffers=offload_buffers, look_ahead=fallback_allocation)
    if verbose:
        print(plan_of(solution, "sequential").explain())
    return solution.device_map(merged=clean_result)


def check_device_map(model: nn.Module, device_map: Mapping[str, Place]) -> None:
    """Raise ConfigError when ``device_map`` gives no device to a parameter or to a buffer that is saved."""
    missing = list(uncovered(model, device_map))
    if missing:
        rest = f", and {len(missing) - _MOST_SHOWN} more" if len(missing) > _MOST_SHOWN else ""
        raise ConfigError(
            "device map",
            [
                Fault(
                    "device_map",
                    dict(device_map),
                    f"no device for {', '.join(missing[:_MOST_SHOWN])}{rest}",
                    "name these tensors or modules around them; '' is the whole model",
                )
            ],
        )


def uncovered(model: nn.Module, names: Mapping[str, Place], *, saved: bool = True) -> Iterator[str]:
    """Give the tensors that are under none of ``names``; ``saved``: without buffers that are not saved."""
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if name in names:
            continue
        start = f"{name}." if name else ""
        hidden = module._non_persistent_buffers_set if saved else ()
        for own in (module._parameters, module._buffers):
            for key, tensor in own.items():
                if tensor is not None and key not in hidden and start + key not in names:
                    yield start + key
        waiting += [
            (start + key, child) for key, child in reversed(module._modules.items()) if child is not None
        ]


def clean_device_map(device_map: dict[str, Device], module_name: str = "") -> dict[str, Device]:
    """Name whole modules in ``device_map`` where all in them lie together; change it, and return it.

    ``module_name``: look only at what is in this module.
    """
    start = f"{module_name}." if module_name else ""
    inside = [name for name in device_map if name == module_name or name.startswith(start)]
    merged = merged_map({name[len(start) :]: device_map.pop(name) for name in inside})
    device_map.update({start + name if name else module_name: device for name, device in merged.items()})
    return device_map


__all__ = ["Place", "check_device_map", "clean_device_map", "infer_auto_device_map", "uncovered"]
