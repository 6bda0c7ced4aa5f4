"""Load checkpoints: single files, sharded ones, safetensors or what ``torch.save`` wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..dispatch import dispatch
from ..hooks.align import full_device
from ..planning.resolve import main_of, resolve_device_map
from ..tensors import as_dtype
from ..weights.reader import open_weights
from .audit import Rules, audit
from .naming import opened
from .pieces import piece_of
from .placing import DISK
from .presence import nothing_lost
from .report import CheckpointReport
from .slots import nearest_entry
from .values import load, with_host
from .where import DeviceMap, places_of

_Path = str | os.PathLike[str]


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
    rules = Rules(None if dtype is None else as_dtype(dtype), tuple(keep_in_fp32_modules or ()))
    found = resolve_device_map(model, device_map, offload_buffers=offload_buffers)
    report, _ = load(
        model,
        checkpoint,
        places_of(found, offload_buffers=offload_buffers),
        rules,
        offload_folder=offload_folder,
        strict=strict,
        partial=partial,
        whole=full_state_dict,
        broadcast=broadcast_from_rank0,
    )
    return report


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
    wanted = None if dtype is None else as_dtype(dtype)
    found = resolve_device_map(
        model,
        device_map,
        max_memory=max_memory,
        no_split_module_classes=no_split_module_classes,
        dtype=wanted,
        offload_buffers=offload_buffers,
    )
    _, offloaded = load(
        model,
        checkpoint,
        places_of(found, offload_buffers=offload_buffers),
        Rules(wanted),
        offload_folder=offload_folder,
        strict=strict,
        whole=full_state_dict,
        broadcast=broadcast_from_rank0,
    )
    if found is None:
        return model
    main = full_device(main_of(found))
    ready = dispatch(
        model,
        found,
        main_device=main,
        offloaded=with_host(model, found, main, offloaded),
        offload_buffers=offload_buffers,
        skip_keys=skip_keys,
        preload_module_classes=preload_module_classes,
        force_hooks=force_hooks,
    )
    nothing_lost(ready)
    return ready


__all__ = ["audit_checkpoint", "load_checkpoint_and_dispatch", "load_checkpoint_in_model", "load_state_dict"]
