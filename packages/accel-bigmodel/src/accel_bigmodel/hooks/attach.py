"""Put hooks on all modules of a model that need one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..offload.loader import PrefixedDataset
from ..offload.tied import TiedTensors
from ..tensors import TiedMap
from .align import AlignDevicesHook, Device
from .forward import add_hook_to_module

Tied = TiedMap | TiedTensors | None
Skip = str | list[str] | None

READS_WITHIN = frozenset({"MultiheadAttention", "TransformerEncoderLayer", "TransformerDecoderLayer"})
"""Modules of torch that use weights of their submodules without calling these."""


def has_own_tensors(module: nn.Module) -> bool:
    """Tell whether ``module`` has tensors beside those of the modules inside."""
    return any(each is not None for table in (module._parameters, module._buffers) for each in table.values())


def taken_whole(module: nn.Module, classes: Collection[str]) -> bool:
    """Tell whether everything inside is the business of one hook, by the name of a class or of its bases."""
    names = {each.__name__ for each in type(module).__mro__}
    return not names.isdisjoint(classes) or (
        not names.isdisjoint(READS_WITHIN) and type(module).__module__.startswith("torch.nn")
    )


def units(module: nn.Module, name: str, classes: Collection[str]) -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield the modules that get a hook of their own: those with tensors, and those taken whole (True).

    A module that is there under several names comes once, under the first.
    """
    yield from _units(module, name, classes, set())


def _units(
    module: nn.Module, name: str, classes: Collection[str], seen: set[int]
) -> Iterator[tuple[str, nn.Module, bool]]:
    if id(module) in seen:
        return
    seen.add(id(module))
    whole = bool(module._modules) and taken_whole(module, classes)
    if whole or has_own_tensors(module):
        yield name, module, whole
    if whole:
        seen.update(id(each) for each in module.modules())
        return
    for key, child in module.named_children():
        yield from _units(child, f"{name}.{key}" if name else key, classes, seen)


def attach_execution_device_hook(
    module: nn.Module,
    execution_device: Device,
    skip_keys: Skip = None,
    preload_module_classes: list[str] | None = None,
    tied_params_map: Tied = None,
) -> None:
    """Make ``module`` and everything inside compute on ``execution_device``.

    What has a hook already keeps it. ``skip_keys``, ``preload_module_classes``: as `dispatch_model` has them.
    """
    for _, each, whole in units(module, "", preload_module_classes or ()):
        if not hasattr(each, "_hf_hook"):
            hook = AlignDevicesHook(
                execution_device,
                place_submodules=whole,
                skip_keys=skip_keys,
                tied_params_map=tied_params_map,
            )
            add_hook_to_module(each, hook, append=True)


def attach_align_device_hook(
    module: nn.Module,
    execution_device: Device | None = None,
    offload: bool = False,
    weights_map: Mapping[str, torch.Tensor] | None = None,
    offload_buffers: bool = False,
    module_name: str = "",
    skip_keys: Skip = None,
    preload_module_classes: list[str] | None = None,
    tied_params_map: Tied = None,
) -> None:
    """Put an `AlignDevicesHook` on every module inside ``module`` that has tensors of its own.

    ``weights_map``: by the names of the whole model, in which ``module`` is called ``module_name``. Hooks
    that are there run first. Everything else is as the hook and `dispatch_model` have it.
    """
    for name, each, whole in units(module, module_name, preload_module_classes or ()):
        prefix = f"{name}." if name else ""
        hook = AlignDevicesHook(
            execution_device,
            offload=offload,
            weights_map=None if weights_map is None else PrefixedDataset(weights_map, prefix),
            offload_buffers=offload_buffers,
            place_submodules=whole,
            skip_keys=skip_keys,
            tied_params_map=tied_params_map,
        )
        add_hook_to_module(each, hook, append=True)


def attach_align_device_hook_on_blocks(
    module: nn.Module,
    execution_device: Device | Mapping[str, Device] | None = None,
    offload: bool | Mapping[str, bool] = False,
    weights_map: Mapping[str, torch.Tensor] | None = None,
    offload_buffers: bool = False,
    module_name: str = "",
    skip_keys: Skip = None,
    preload_module_classes: list[str] | None = None,
    tied_params_map: Tied = None,
) -> None:
    """Do as `attach_align_device_hook`, with a device and an ``offload`` for each block of the model.

    Both may be one for all, or by the names of blocks; a name stands for everything inside that has no
    entry of its own. The output of ``module`` goes to where its input was.
    """
    devices = execution_device if isinstance(execution_device, Mapping) else None
    away = offload if isinstance(offload, Mapping) else None
    common: dict[str, Any] = {
        "offload_buffers": offload_buffers,
        "skip_keys": skip_keys,
        "tied_params_map": tied_params_map,
    }
    for name, each, whole in units(module, module_name, preload_module_classes or ()):
        device = execution_device if devices is None else _nearest(devices, name)
        is_away = bool(offload if away is None else _nearest(away, name))
        if device is None and not is_away:
            continue
        found = PrefixedDataset(weights_map, f"{name}." if name else "") if weights_map is not None else None
        hook = AlignDevicesHook(
            device,  # type: ignore[arg-type]
            offload=is_away,
            weights_map=found if is_away else None,
            place_submodules=whole,
            **common,
        )
        add_hook_to_module(each, hook, append=True)
    first = _nearest(devices, module_name) if devices is not None else execution_device
    outer = AlignDevicesHook(first, io_same_device=True, skip_keys=skip_keys)  # type: ignore[arg-type]
    _outer(module, outer)


def _outer(module: nn.Module, hook: AlignDevicesHook) -> None:
    """Put ``hook``, which concerns inputs and outputs alone, around ``module``."""
    there = getattr(module, "_hf_hook", None)
    if isinstance(there, AlignDevicesHook):
        # One hook is cheaper than two in a row, and others look for this one.
        there.io_same_device = True
        return
    add_hook_to_module(module, hook, append=True)


def _nearest(by_name: Mapping[str, Any], name: str) -> Any:
    """Return the entry of ``name``, or of the nearest module around it; None without."""
    while name:
        if name in by_name:
            return by_name[name]
        name = name.rpartition(".")[0]
    return by_name.get("")


__all__ = [
    "attach_align_device_hook",
    "attach_align_device_hook_on_blocks",
    "attach_execution_device_hook",
    "has_own_tensors",
    "taken_whole",
    "units",
]
