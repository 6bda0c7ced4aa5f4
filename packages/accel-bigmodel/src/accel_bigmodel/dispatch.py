"""Spread a model over devices, the memory of the host and the disk, and keep it usable as it was."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel_core.errors import ConfigError, Fault

from .guard import guard
from .hooks.align import Device, full_device
from .hooks.whole import cpu_offload_with_hook
from .loading.offloaded import left_in_files
from .offload.folder import INDEX, offload_state_dict, read_index
from .offload.loader import OffloadedWeightsLoader
from .planning.resolve import main_of, resolve_device_map
from .tensors import all_tensors
from .wiring import AWAY, Place, Wiring, unhook

Skip = str | list[str] | None
DeviceMap = Mapping[str, Device]
_CPU = torch.device("cpu")


def dispatch_model(
    model: nn.Module,
    device_map: DeviceMap,
    main_device: Device | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    offload_dir: str | os.PathLike[str] | None = None,
    offload_index: Mapping[str, Any] | None = None,
    offload_buffers: bool = False,
    skip_keys: Skip = None,
    preload_module_classes: Sequence[str] | None = None,
    force_hooks: bool = False,
) -> nn.Module:
    """Spread ``model`` as ``device_map`` says, and return it; it is called as before.

    ``device_map``: names of modules or tensors, and a device, ``"cpu"`` or ``"disk"`` for each; the map
    stays at hand as ``model.hf_device_map``. What is on the CPU or the disk computes on ``main_device``,
    None for the first other device of the map; with no such device, on the CPU.

    Weights for the disk are those that ``offload_index`` describes, or those that `load_checkpoint_in_model`
    left in the checkpoint's files, or else what is in ``offload_dir``; for weights that the model or
    ``state_dict`` has in memory, the folder is written. ``offload_buffers``: buffers are offloaded like
    parameters. ``skip_keys``: arguments and results by these names are not moved.
    ``preload_module_classes``: names of classes whose forward uses weights of modules inside without calling
    them; these come with it. ``force_hooks``: also where the whole model lies on one device.

    Raises ConfigError for a map that leaves out a tensor or for weights that nobody has, UnknownNameError
    for names that the model does not have, CheckpointError for tensors that would stay without data.
    """
    if getattr(model, "_no_placement_params", None) is None:
        device_map = resolve_device_map(model, device_map) or {}
    unhook(model)
    main = _main(device_map, main_device)
    places = _places(device_map, main)
    offloaded: Mapping[str, torch.Tensor] = {}
    if AWAY in places.values():
        on_disk = _under(model, [name for name, place in device_map.items() if place == "disk"], device_map)
        in_memory = _under(model, [name for name in device_map if places[name] is AWAY], device_map) - on_disk
        host = [name for name, place in device_map.items() if str(place) == "cpu"]
        on_host = _under(model, host, device_map)
        offloaded = _gathered(model, in_memory, on_disk, on_host, state_dict, offload_dir, offload_index)
    return dispatch(
        model,
        device_map,
        main_device=main,
        offloaded=offloaded,
        offload_buffers=offload_buffers,
        skip_keys=skip_keys,
        preload_module_classes=preload_module_classes,
        force_hooks=force_hooks,
    )


def dispatch(
    model: nn.Module,
    device_map: DeviceMap,
    *,
    main_device: Device | None = None,
    offloaded: Mapping[str, torch.Tensor],
    offload_buffers: bool = False,
    skip_keys: Skip = None,
    preload_module_classes: Sequence[str] | None = None,
    force_hooks: bool = False,
) -> nn.Module:
    """Spread ``model`` as `dispatch_model` does, with ``offloaded`` for all weights that are not to stay.

    ``device_map`` is complete: this function does not look for what it leaves out. Tensors that stay and
    have no data yet are taken from ``offloaded``, too.
    """
    unhook(model)
    main = _main(device_map, main_device)
    places = _places(device_map, main)
    wiring = Wiring(
        model,
        places,
        main,
        offloaded,
        offload_buffers=offload_buffers,
        preload=preload_module_classes or (),
    )
    one_place = len(set(places.values())) == 1 and AWAY not in places.values()
    wiring.attach(skip_keys, hooks=force_hooks or not one_place)
    if force_hooks or not one_place:
        guard(model)
    model.hf_device_map = dict(device_map)  # type: ignore[assignment]
    return model


def _places(device_map: DeviceMap, main: torch.device) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for name, value in device_map.items():
        place: Place = AWAY if value == "disk" else _real(name, value)
        if place == _CPU and main != _CPU:
            place = AWAY
        found[name] = place
    return found


def _main(device_map: DeviceMap, given: Device | None) -> torch.device:
    if given is not None:
        return _real("main_device", given)
    first = main_of(dict(device_map))
    return _real(next((name for name, place in device_map.items() if place == first), "main_device"), first)


def _real(name: str, value: Device) -> torch.device:
    """Return a device that this machine has; raise ConfigError for others, before anything is moved."""
    try:
        device = full_device(value)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        fault = Fault(
            name, value, f"is no device of this machine: {error}", "name one that it has, 'cpu' or 'disk'"
        )
        raise ConfigError("device map", [fault]) from error
    return device


def _under(model: nn.Module, names: Sequence[str], device_map: DeviceMap) -> set[str]:
    """Return the names of the tensors whose nearest entry in the map is one of ``names``."""
    wanted = set(names)
    found = set()
    # A module that is there under several names has one place, that of its first name.
    for path, module in model.named_modules():
        for key, _ in all_tensors(module, recurse=False):
            full = name = f"{path}.{key}" if path else key
            while name and name not in device_map:
                name = name.rpartition(".")[0]
            if name in wanted:
                found.add(full)
    return found


def _gathered(
    model: nn.Module,
    in_memory: set[str],
    on_disk: set[str],
    on_host: set[str],
    state_dict: Mapping[str, torch.Tensor] | None,
    offload_dir: str | os.PathLike[str] | None,
    offload_index: Mapping[str, Any] | None,
) -> Mapping[str, torch.Tensor]:
    """Return the weights that are offloaded: some in memory, some as pages of files."""
    mine = _mine(model, state_dict)
    memory = {name: mine[name].to("cpu") for name in sorted(in_memory) if name in mine}
    if not on_disk:
        return memory
    if offload_index is None:
        # In memory anyway, under a name that they are tied to.
        host = {id(each) for name, each in all_tensors(model) if name in on_host and each.device == _CPU}
        anyway = {name for name, each in all_tensors(model) if name in on_disk and id(each) in host}
        memory |= {name: mine[name] for name in sorted(anyway)}
        on_disk = on_disk - anyway
        if not on_disk:
            return memory
    index = dict(offload_index) if offload_index is not None else None
    left, folder = left_in_files(model) if index is None else ({}, None)
    tensors = dict(all_tensors(model))
    known = {id(tensors[name]) for name in left if name in tensors}
    away = on_disk - set(mine)
    if away and all(id(tensors[name]) in known for name in away):
        # A load left them in the checkpoint's own files; what it read of the same modules stays in memory.
        memory |= {name: mine[name].to("cpu") for name in sorted(on_disk) if name in mine}
        return OffloadedWeightsLoader(memory, save_folder=folder, index=left)
    if index is None:
        index = _written(model, on_disk, mine, offload_dir)
    return OffloadedWeightsLoader(memory, save_folder=offload_dir, index=index)


def _mine(model: nn.Module, state_dict: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Return what is in memory, by name: ``state_dict``, and what the model has beside it."""
    found = {name: tensor.detach() for name, tensor in all_tensors(model) if tensor.device.type != "meta"}
    given = {
        name: tensor.detach() for name, tensor in (state_dict or {}).items() if tensor.device.type != "meta"
    }
    return {**found, **given}


def _written(
    model: nn.Module,
    names: set[str],
    mine: Mapping[str, torch.Tensor],
    folder: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    """Return the index of a folder that holds ``names``, those in memory written there now."""
    if folder is None:
        raise ConfigError(
            "device map",
            [
                Fault(
                    "offload_dir",
                    None,
                    f"is missing, and {len(names)} tensors are for the disk",
                    "give a folder, or offload_index, which says where weights are on the disk already",
                )
            ],
        )
    # What the model has now is what counts, whatever the folder held before.
    fresh = _once_each(model, names, mine)
    offload_state_dict(folder, fresh)
    path = Path(folder) / INDEX
    index = read_index(path) if path.exists() else {}
    return {name: index[name] for name in index if name in names}


def _once_each(
    model: nn.Module, names: set[str], mine: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the tensors of ``names`` that are in memory; those that are tied, by one name."""
    seen: set[int] = set()
    found: dict[str, torch.Tensor] = {}
    for name, tensor in all_tensors(model):
        if name in names and name in mine and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = mine[name]
    return found


def cpu_offload(
    model: nn.Module,
    execution_device: Device | None = None,
    offload_buffers: bool = False,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    preload_module_classes: Sequence[str] | None = None,
) -> nn.Module:
    """Keep all weights of ``model`` in memory of the host, each on the device during its module's forward.

    ``execution_device``: None is where the model's first parameter is. ``state_dict``: the weights to keep,
    None for the model's own. Other arguments as in `dispatch_model`.
    """
    main = _execution_device(model, execution_device)
    unhook(model)
    weights = {name: tensor.to("cpu") for name, tensor in _mine(model, state_dict).items()}
    return _all_away(model, main, weights, offload_buffers, preload_module_classes)


def disk_offload(
    model: nn.Module,
    offload_dir: str | os.PathLike[str],
    execution_device: Device | None = None,
    offload_buffers: bool = False,
    preload_module_classes: Sequence[str] | None = None,
) -> nn.Module:
    """Keep all weights of ``model`` in files of ``offload_dir``, mapped when they are used.

    The folder is written, except for weights on the meta device, which must be in it. Other arguments as
    in `cpu_offload`.
    """
    main = _execution_device(model, execution_device)
    unhook(model)
    names = {name for name, _ in all_tensors(model)}
    if not offload_buffers:
        names -= {name for name, _ in all_tensors(model, parameters=False)}
    index = _written(model, names, _mine(model, None), offload_dir)
    weights = OffloadedWeightsLoader(save_folder=offload_dir, index=index)
    return _all_away(model, main, weights, offload_buffers, preload_module_classes)


def _execution_device(model: nn.Module, given: Device | None) -> torch.device:
    if given is not None:
        return _real("execution_device", given)
    first = next(model.parameters(), None)
    return _CPU if first is None or first.device.type == "meta" else first.device


def _all_away(
    model: nn.Module,
    main: torch.device,
    weights: Mapping[str, torch.Tensor],
    offload_buffers: bool,
    preload: Sequence[str] | None,
) -> nn.Module:
    wiring = Wiring(model, {"": AWAY}, main, weights, offload_buffers=offload_buffers, preload=preload or ())
    wiring.attach()
    guard(model)
    return model


__all__ = ["cpu_offload", "cpu_offload_with_hook", "disk_offload", "dispatch", "dispatch_model"]
