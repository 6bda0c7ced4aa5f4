"""One load from its check to its end, and what is looked at before and after it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel_core.errors import CheckpointError, ConfigError, Fault

from ..collecting import postponed
from ..offload.folder import INDEX, offload_state_dict, read_index
from ..offload.loader import OffloadedWeightsLoader
from ..sources import Layered
from ..tensors import all_tensors
from .audit import Rules, audit
from .extras import load_extras
from .naming import Translated, opened
from .offloaded import OffloadedWeights, described, remember
from .pieces import piece_of
from .placing import PlaceOf, Plan, carry_out, plan
from .presence import in_one_piece
from .report import CheckpointReport, refuse, with_offloaded
from .slots import nearest_entry
from .where import DeviceMap

_Path = str | os.PathLike[str]


@postponed()
def load(
    model: nn.Module,
    checkpoint: _Path,
    place_of: PlaceOf,
    rules: Rules,
    *,
    offload_folder: _Path | None = None,
    strict: bool,
    partial: bool | None = None,
    whole: bool = True,
    broadcast: bool = False,
) -> tuple[CheckpointReport, Mapping[str, torch.Tensor]]:
    """Load what stays in memory; return the report, and the weights that are left in files by name."""
    if broadcast:
        if not whole:
            fault = Fault("full_state_dict", False, "rank 0 does not have the shards of the others")
            raise ConfigError("loading with broadcast_from_rank0=True", [fault])
        from .shared import load_from_rank_0

        return load_from_rank_0(model, checkpoint, place_of, rules, strict=strict, partial=partial), {}
    in_one_piece(model)
    weights = opened(checkpoint, model)
    found = audit(model, weights, rules, shape_of=lambda tensor: piece_of(tensor, whole=whole).whole)
    refuse(found.report, str(weights.source), strict=strict, partial=partial, computed=found.computed)
    # Made inside torch.inference_mode, parameters could never be trained.
    with torch.inference_mode(mode=False):
        made = plan(found.matches, weights, place_of, whole=whole)
        offloaded, index = _offloaded(weights, made, offload_folder)
        carry_out(made, weights, model)
        load_extras(found, weights)
    if made.offloaded:
        remember(model, index, offload_folder)
    return with_offloaded(found.report, made.offloaded), offloaded


def _offloaded(
    weights: Translated, made: Plan, folder: _Path | None
) -> tuple[OffloadedWeights, dict[str, Any]]:
    """Return the weights that stay in files, and the index of these by the names of the model.

    They are in the files of the checkpoint, or those that cannot be used there in copies in ``folder``.
    """
    index = described(weights, made.offloaded)
    # What is tied is copied once, under one of its names.
    copied: dict[tuple[str, torch.dtype], str] = {}
    for name, entry in made.offloaded.items():
        if name not in index:
            copied.setdefault(entry, name)
    if not copied:
        return OffloadedWeights(weights, made.offloaded), index
    if folder is None:
        raise CheckpointError(
            f"{len(copied)} tensors are to be on the disk, and are in a file that cannot be used in place",
            where=f"{weights.source}: {next(iter(copied.values()))}",
            fix="give offload_folder=, where a copy is put; or save the checkpoint as safetensors",
        )
    offload_state_dict(folder, OffloadedWeights(weights, {name: entry for entry, name in copied.items()}))
    there = read_index(Path(folder) / INDEX)
    index |= {name: there[name] for name in copied.values()}
    names = {name: (copied.get(entry, name), entry[1]) for name, entry in made.offloaded.items()}
    return OffloadedWeights(OffloadedWeightsLoader(save_folder=folder, index=index), names), index


def with_host(
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


__all__ = ["load", "with_host"]
