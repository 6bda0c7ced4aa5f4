"""Values into a model: each read once, to where it stays; the model changes when all of them are there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..offload.block import like
from ..tensors import refresh
from ..weights.filling import fill
from ..weights.mapped import Location
from .audit import Match, Weights
from .pieces import Piece, is_shard, local, piece_of, rebuilt
from .slots import Spot

DISK = "disk"
_HOST = torch.device("cpu")
Place = torch.device | str
"""A device, or `DISK`: not in memory."""
PlaceOf = Callable[[Spot, torch.Tensor, bool], Place]
"""Where a spot goes, given the tensor that is there, and whether that is a buffer."""


@dataclass(slots=True)
class Plan:
    """What is to be done: fill, copy, and then put into the model.

    ``fills``: memory, and where its values are in files. ``copies``: memory, the name of its value, and the
    part of it. ``puts``: spots, and what they get; None for what is offloaded. ``offloaded``: for each such
    name that of its value, and the dtype that it gets.
    """

    fills: list[tuple[torch.Tensor, Location]] = field(default_factory=list)
    copies: list[tuple[torch.Tensor, str, Piece]] = field(default_factory=list)
    puts: list[tuple[Spot, torch.Tensor | None]] = field(default_factory=list)
    touched: list[torch.Tensor] = field(default_factory=list)
    offloaded: dict[str, tuple[str, torch.dtype]] = field(default_factory=dict)


def plan(
    matches: Iterable[Match],
    weights: Weights,
    place_of: PlaceOf,
    *,
    whole: bool = True,
) -> Plan:
    """Take memory for all tensors that are to be in memory, and say where their values come from.

    Nothing of the model is changed. ``whole``: values of sharded tensors are whole, and cut here.
    """
    made = Plan()
    for match in matches:
        slot = match.slot
        spots: dict[Place, list[Spot]] = {}
        # A module that is there under several names has one place, that of its first name.
        known: dict[tuple[int, str], Place] = {}
        for spot in slot.spots:
            where = (id(spot.table), spot.key)
            if where not in known:
                known[where] = place_of(spot, slot.tensor, slot.buffer)
            spots.setdefault(known[where], []).append(spot)
        if DISK in spots and _HOST in spots:
            # In memory anyway, and tied as it was.
            spots[_HOST] += spots.pop(DISK)
        for place, here in spots.items():
            if isinstance(place, str):
                made.offloaded |= {spot.name: (match.source, match.dtype) for spot in here}
                made.puts += [(spot, None) for spot in here]
            else:
                _in_memory(made, match, weights, place, here, whole=whole)
    return made


def _in_memory(
    made: Plan, match: Match, weights: Weights, device: torch.device, spots: list[Spot], *, whole: bool
) -> None:
    old = match.slot.tensor
    piece = piece_of(old, whole=whole)
    if old.device == device and old.dtype == match.dtype:
        target = local(old)
        made.touched.append(target)
    else:
        target = torch.empty(piece.shape, dtype=match.dtype, device=device)
        new = rebuilt(old, target)
        made.puts += [(spot, new) for spot in spots]
    place = weights.location(match.source)
    stretch = None if place is None else piece.within(place)
    if stretch is not None and target.is_contiguous() and _plain(target):
        made.fills.append((target, stretch))
    else:
        made.copies.append((target, match.source, piece))


def _plain(tensor: torch.Tensor) -> bool:
    return type(tensor) in (torch.Tensor, nn.Parameter)


def carry_out(made: Plan, weights: Weights, model: nn.Module) -> None:
    """Read everything, then change the model."""
    with torch.no_grad():
        fill(made.fills)
        for target, name, piece in made.copies:
            target.copy_(piece.of(weights[name]))
    put(made, model)


def put(made: Plan, model: nn.Module) -> None:
    """Put the tensors into ``model``; what is offloaded leaves a placeholder."""
    # Threads wrote past autograd, which must not go on with what it saved before.
    for tensor in made.touched:
        torch.autograd.graph.increment_version(tensor)
    placeholders: dict[int, torch.Tensor] = {}
    modules: dict[int, nn.Module] = {}
    for spot, new in made.puts:
        old = spot.table[spot.key]
        if new is not None:
            spot.table[spot.key] = new
        elif old.device.type != "meta":
            # What was tied stays tied.
            spot.table[spot.key] = placeholders.setdefault(id(old), like(old, old.detach().to("meta")))
        modules[id(spot.module)] = spot.module
    for module in modules.values():
        refresh(module)
    if any(new is not None and is_shard(new) for _, new in made.puts):
        # Modules that gather their shards look again at what they have.
        again: Any = model._apply
        again(lambda tensor: tensor)


__all__ = ["DISK", "Place", "PlaceOf", "Plan", "carry_out", "plan", "put"]
