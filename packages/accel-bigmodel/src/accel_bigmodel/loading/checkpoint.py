"""Load checkpoints: single files, sharded ones, safetensors or what ``torch.save`` wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from accel_core.errors import CheckpointError, ConfigError, Fault, StateError

from ..dispatch import dispatch
from ..guard import offloaded_names
from ..hooks.align import full_device
from ..offload.folder import INDEX, offload_state_dict, read_index
from ..offload.loader import OffloadedWeightsLoader
from ..planning.resolve import main_of, resolve_device_map
from ..sources import Layered
from ..tensors import all_tensors, as_dtype
from ..weights.reader import open_weights
from .audit import Rules, audit
from .extras import load_extras
from .naming import Translated, opened
from .offloaded import OffloadedWeights, remember
from .pieces import piece_of
from .placing import DISK, Place, PlaceOf, Plan, carry_out, plan
from .report import CheckpointReport, refuse, with_offloaded
from .slots import Spot, nearest_entry

_Path = str | os.PathLike[str]
DeviceMap = Mapping[str, int | str | torch.device]


def load_state_dict(
    checkpoint_file: _Path, device_map: Mapping[str, int | str | torch.device] | None = None
) -> dict[str, torch.Tensor]:
    """Return the tensors of one file by name, each on the device that ``device_map`` has for it.

    Without a map, on the CPU; of safetensors, what is on the CPU or ``"disk"`` are the pages of the file,
    which are read when they are used. Raises CheckpointError for a file that is damaged, or no weights.
    """
    weights = open_weights(checkpoint_file)
    found: dict[str, torch.Tensor] = {}
    for name in weights:
        place = nearest_entry(name, device_map or {})
        value = weights[name]
        found[name] = value if place is None or place == DISK else value.to(full_device(place))
    return found


def load_checkpoint_in_model(
    model: nn.Module,
    checkpoint: _Path,
    device_map: DeviceMap | str | int | torch.device | None = None,
    offload_folder: _Path | None = None,
    dtype: torch.dtype | str | None = None,
    offload_state_dict: bool = False,
    offload_buffers: bool = False,
    keep_in_fp32_modules: Sequence[str] | None = None,
    offload_8bit_bnb: bool = False,
    strict: bool = False,
    full_state_dict: bool = True,
    broadcast_from_rank0: bool = False,
    *,
    partial: bool = False,
) -> CheckpointReport:
    """Load ``checkpoint`` into ``model``, which may be a skeleton, and return what was found.

    ``checkpoint``: a file, an index, or a folder with either. ``device_map``: where tensors go; None leaves
    them where they are, and those on meta go to the CPU. What goes to ``"disk"`` is not read: it stays in
    the checkpoint's own safetensors, for `dispatch_model`; of files that ``torch.save`` wrote, a copy goes
    to ``offload_folder``. ``dtype``: of floating-point tensors, None for those that the model has;
    modules of ``keep_in_fp32_modules`` get float32. ``offload_buffers``: buffers of modules on the disk
    stay there, too. ``strict``: the checkpoint must have what the model has, and nothing else; otherwise
    what is missing keeps its value, and what is left over is named in the log. ``partial``: what is missing
    may also be without data afterwards. ``full_state_dict``: values of DTensors are whole in the checkpoint;
    False for those that are this process's shards. ``broadcast_from_rank0``: only rank 0 of the process
    group reads, and sends every tensor to the others. ``offload_state_dict`` is accepted, and not needed:
    no more is in memory than what stays there. ``offload_8bit_bnb`` is for `load_and_quantize_model`.

    Everything is checked from the headers before the first tensor is read. Raises CheckpointError, with
    all names, when tensors would have no data, have another shape or kind of number, are one in the model
    and differ in the checkpoint; ConfigError and UnknownNameError for the device map; StateError for a
    model that is offloaded already.
    """
    del offload_state_dict, offload_8bit_bnb
    _in_one_piece(model)
    rules = Rules(None if dtype is None else as_dtype(dtype), tuple(keep_in_fp32_modules or ()))
    place_of = places_for(model, device_map, offload_buffers=offload_buffers)
    if broadcast_from_rank0:
        if not full_state_dict:
            fault = Fault("full_state_dict", False, "rank 0 does not have the shards of the others")
            raise ConfigError("load_checkpoint_in_model with broadcast_from_rank0=True", [fault])
        from .shared import load_from_rank_0

        return load_from_rank_0(model, checkpoint, place_of, rules, strict=strict, partial=partial)
    return load(
        model,
        checkpoint,
        place_of,
        rules,
        offload_folder=offload_folder,
        strict=strict,
        partial=partial,
        whole=full_state_dict,
    )[0]


def audit_checkpoint(
    model: nn.Module,
    checkpoint: _Path,
    dtype: torch.dtype | str | None = None,
    keep_in_fp32_modules: Sequence[str] | None = None,
) -> CheckpointReport:
    """Return what `load_checkpoint_in_model` would find, and load nothing; what does not fit is no error.

    Reads headers only, and the values of tensors that are tied in the model and stored twice. Raises
    CheckpointError for a checkpoint that cannot be read.
    """
    rules = Rules(None if dtype is None else as_dtype(dtype), tuple(keep_in_fp32_modules or ()))
    weights = opened(checkpoint, model)
    return audit(model, weights, rules, shape_of=lambda tensor: piece_of(tensor).whole).report


def load_checkpoint_and_dispatch(
    model: nn.Module,
    checkpoint: _Path,
    device_map: DeviceMap | str | int | torch.device | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    no_split_module_classes: Sequence[str] | None = None,
    offload_folder: _Path | None = None,
    offload_buffers: bool = False,
    dtype: torch.dtype | str | None = None,
    offload_state_dict: bool | None = None,
    skip_keys: str | list[str] | None = None,
    preload_module_classes: Sequence[str] | None = None,
    force_hooks: bool = False,
    strict: bool = False,
    full_state_dict: bool = True,
    broadcast_from_rank0: bool = False,
) -> nn.Module:
    """Load ``checkpoint`` into ``model``, spread it over devices, CPU and disk, and return it ready to run.

    ``device_map``: a map, one device, or a strategy: ``"auto"``, ``"balanced"``, ``"balanced_low_0"`` or
    ``"sequential"``, for which ``max_memory`` and ``no_split_module_classes`` count, see
    `infer_auto_device_map`. None only loads. The other arguments are those of `load_checkpoint_in_model`
    and `dispatch_model`.
    """
    del offload_state_dict
    _in_one_piece(model)
    wanted = None if dtype is None else as_dtype(dtype)
    found = resolve_device_map(
        model,
        device_map,
        max_memory=max_memory,
        no_split_module_classes=no_split_module_classes,
        dtype=wanted,
        offload_buffers=offload_buffers,
    )
    if found is None or broadcast_from_rank0:
        load_checkpoint_in_model(
            model,
            checkpoint,
            found,
            offload_folder,
            wanted,
            offload_buffers=offload_buffers,
            strict=strict,
            full_state_dict=full_state_dict,
            broadcast_from_rank0=broadcast_from_rank0,
        )
        offloaded: Mapping[str, torch.Tensor] = {}
    else:
        _, offloaded = load(
            model,
            checkpoint,
            _places(found, offload_buffers=offload_buffers),
            Rules(wanted),
            offload_folder=offload_folder,
            strict=strict,
            whole=full_state_dict,
        )
    if found is None:
        return model
    main = full_device(main_of(found))
    ready = dispatch(
        model,
        found,
        main_device=main,
        offloaded=_with_host(model, found, main, offloaded),
        offload_buffers=offload_buffers,
        skip_keys=skip_keys,
        preload_module_classes=preload_module_classes,
        force_hooks=force_hooks,
    )
    _nothing_lost(ready)
    return ready


def _nothing_lost(model: nn.Module) -> None:
    """Raise CheckpointError for a tensor that has no data, and no hook that brings it.

    Some operations of torch take one for numbers, and compute something.
    """
    without = [name for name, tensor in all_tensors(model) if tensor.device.type == "meta"]
    if not without:
        return
    brought = set(offloaded_names(model))
    lost = [name for name in without if name not in brought]
    if lost:
        raise CheckpointError(
            f"{len(lost)} tensors of the model would have no data when it runs: {', '.join(lost[:5])}",
            where=type(model).__name__,
            fix="place them on a device, or name the class of the module that uses them in "
            "preload_module_classes",
        )


def _in_one_piece(model: nn.Module) -> None:
    """Refuse a model whose hooks would put other values over those that are loaded."""
    name = next(offloaded_names(model), None)
    if name is not None:
        raise StateError(
            f"Nothing can be loaded into a model that is offloaded already, with {name!r} for one",
            where=type(model).__name__,
            fix="load into a new skeleton, or bring it back with remove_hook_from_submodules(model) first",
        )


def places_for(
    model: nn.Module, device_map: DeviceMap | str | int | torch.device | None, *, offload_buffers: bool
) -> PlaceOf:
    """Return the function that says where a tensor goes. Raises as `resolve_device_map`."""
    found = resolve_device_map(model, device_map, offload_buffers=offload_buffers)
    return _stay if found is None else _places(found, offload_buffers=offload_buffers)


def _stay(_spot: Spot, tensor: torch.Tensor, _buffer: bool) -> Place:
    return torch.device("cpu") if tensor.device.type == "meta" else tensor.device


def _places(device_map: DeviceMap, *, offload_buffers: bool) -> PlaceOf:
    known: dict[str, Place] = {
        name: DISK if place == DISK else full_device(place) for name, place in device_map.items()
    }
    main = full_device(main_of(dict(device_map)))

    def place_of(spot: Spot, _tensor: torch.Tensor, buffer: bool) -> Place:
        place = nearest_entry(spot.name, known)
        # What the map leaves out, and buffers that are not offloaded, are where the model computes.
        if place is None or (buffer and place == DISK and not offload_buffers):
            return main
        return place

    return place_of


def load(
    model: nn.Module,
    checkpoint: _Path,
    place_of: PlaceOf,
    rules: Rules,
    *,
    offload_folder: _Path | None = None,
    strict: bool = False,
    partial: bool | None = None,
    whole: bool = True,
) -> tuple[CheckpointReport, Mapping[str, torch.Tensor]]:
    """Load what stays in memory; return the report, and the weights that are left in files by name."""
    weights = opened(checkpoint, model)
    found = audit(model, weights, rules, shape_of=lambda tensor: piece_of(tensor, whole=whole).whole)
    refuse(found.report, str(weights.source), strict=strict, partial=partial, computed=found.computed)
    # Made inside torch.inference_mode, parameters could never be trained.
    with torch.inference_mode(mode=False):
        made = plan(found.matches, weights, place_of, whole=whole)
        offloaded = _offloaded(weights, made, offload_folder)
        carry_out(made, weights, model)
        load_extras(found, weights)
    if made.offloaded:
        remember(model, weights, made.offloaded)
    return with_offloaded(found.report, made.offloaded), offloaded


def _offloaded(weights: Translated, made: Plan, folder: _Path | None) -> OffloadedWeights:
    """Return the weights that stay in files: in those of the checkpoint, or in copies in ``folder``."""
    left = sorted({source for source, _ in made.offloaded.values() if weights.location(source) is None})
    if not left:
        return OffloadedWeights(weights, made.offloaded)
    if folder is None:
        raise CheckpointError(
            f"{len(left)} tensors are to be on the disk, and are in a file that cannot be used in place",
            where=f"{weights.source}: {left[0]}",
            fix="give offload_folder=, where a copy is put; or save the checkpoint as safetensors",
        )
    kinds = dict(made.offloaded.values())
    offload_state_dict(folder, OffloadedWeights(weights, {name: (name, kinds[name]) for name in left}))
    index = {name: info for name, info in read_index(Path(folder) / INDEX).items() if name in kinds}
    return OffloadedWeights(OffloadedWeightsLoader(save_folder=folder, index=index), made.offloaded)


def _with_host(
    model: nn.Module,
    device_map: DeviceMap,
    main: torch.device,
    offloaded: Mapping[str, torch.Tensor],
) -> Mapping[str, torch.Tensor]:
    """Return ``offloaded`` with the weights that wait in the host's memory for another device."""
    if main.type == "cpu":
        return offloaded
    waiting = {
        name: tensor.detach()
        for name, tensor in all_tensors(model)
        if tensor.device.type == "cpu" and str(nearest_entry(name, device_map)) == "cpu"
    }
    return waiting if not offloaded else Layered(waiting, offloaded)


__all__ = ["audit_checkpoint", "load_checkpoint_and_dispatch", "load_checkpoint_in_model", "load_state_dict"]
