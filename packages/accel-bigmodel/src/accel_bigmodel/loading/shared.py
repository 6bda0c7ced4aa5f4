"""Loading with several processes: rank 0 reads, and sends every tensor to the others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from accel_core.errors import CapabilityError, CheckpointError, StateError

from ..weights.filling import fill
from ..weights.mapped import Location
from .audit import Audit, Rules, audit
from .extras import load_extras
from .naming import Translated, opened
from .pieces import piece_of
from .placing import PlaceOf, Plan, plan, put
from .presence import in_one_piece
from .report import CheckpointReport, refuse

_PARCEL = 64 << 20
_ALIGNED = 16
Fact = tuple[tuple[int, ...], torch.dtype, str]
"""Of a stored tensor: shape, dtype, and the name that its bytes are stored under."""


class Announced(Mapping[str, torch.Tensor]):
    """Weights that another process has: what they are, and not yet their values."""

    def __init__(self, facts: Mapping[str, Fact], source: str) -> None:
        self.facts = facts
        self.source = source
        self.values_here: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.values_here[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.facts)

    def __len__(self) -> int:
        return len(self.facts)

    def __contains__(self, name: object) -> bool:
        return name in self.facts

    def location(self, name: str) -> Location | None:
        """Return None: not in a file of this process."""
        del name
        return None

    def same_as(self, name: str) -> str:
        """Return the name that its bytes are stored under."""
        return self.facts[name][2]

    def kind(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return its shape and its dtype."""
        return self.facts[name][:2]

    def equal(self, one: str, other: str) -> bool:
        """Say that they are: the process that has them compares them."""
        del one, other
        return True


def load_from_rank_0(
    model: nn.Module,
    checkpoint: str | os.PathLike[str],
    place_of: PlaceOf,
    rules: Rules,
    *,
    strict: bool,
    partial: bool | None,
) -> CheckpointReport:
    """Load on all ranks what rank 0 reads. Whatever goes wrong on one rank is an error on all."""
    if not (dist.is_available() and dist.is_initialized()):
        raise StateError(
            "broadcast_from_rank0=True needs a process group",
            fix="call torch.distributed.init_process_group first, or leave it out",
        )
    with torch.inference_mode(mode=False):
        return _load(model, checkpoint, place_of, rules, strict=strict, partial=partial)


def _load(
    model: nn.Module,
    checkpoint: str | os.PathLike[str],
    place_of: PlaceOf,
    rules: Rules,
    *,
    strict: bool,
    partial: bool | None,
) -> CheckpointReport:
    weights, announced = _announce(checkpoint, model)
    checked: list[tuple[Audit, Plan]] = []
    failure: Exception | None = None
    try:
        in_one_piece(model)
        # Rank 0 compares values too, where two stored tensors become one.
        compared = audit(
            model,
            announced if weights is None else weights,
            rules,
            shape_of=lambda tensor: piece_of(tensor).whole,
        )
        refuse(
            compared.report,
            announced.source,
            strict=strict,
            partial=partial,
            computed=compared.computed,
        )
        checked.append((compared, _in_memory_only(plan(compared.matches, announced, place_of))))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
        failure = error
    _agree(failure)
    found, made = checked[0]
    needed = {name for _, name, _ in made.copies} | {name for _, name in found.extras}
    targets: dict[str, list[Any]] = {}
    for target, name, piece in made.copies:
        targets.setdefault(name, []).append((target, piece))
    kept = {name for _, name in found.extras}
    for name, value in _sent(weights, announced, needed):
        for target, piece in targets.get(name, ()):
            with torch.no_grad():
                target.copy_(piece.of(value))
        if name in kept:
            announced.values_here[name] = value.cpu().clone()
    put(made, model)
    load_extras(found, announced)
    return found.report


def _in_memory_only(made: Plan) -> Plan:
    if made.offloaded:
        raise CapabilityError(
            "Weights that only rank 0 reads cannot stay in files on the other ranks",
            where=next(iter(made.offloaded)),
            fix="leave out broadcast_from_rank0, or place nothing on the disk",
        )
    return made


def _announce(checkpoint: str | os.PathLike[str], model: nn.Module) -> tuple[Translated | None, Announced]:
    """Return the weights, on rank 0, and what they are, everywhere."""
    weights: Translated | None = None
    told: list[Any] = [None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            weights = opened(checkpoint, model)
            facts = {name: (*weights.kind(name), weights.same_as(name)) for name in weights}
            told = [(facts, str(weights.source))]
        except Exception as error:  # noqa: BLE001 - the other ranks wait to hear of it
            failure = error
    dist.broadcast_object_list(told, src=0)
    _agree(failure)
    return weights, Announced(*told[0])


def _agree(failure: Exception | None) -> None:
    """Raise on every rank if there was a failure on one."""
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for rank, text in enumerate(told):
        if text is not None:
            raise CheckpointError(
                "Another rank cannot load the checkpoint, so that none did",
                where=f"rank {rank}: {text}",
                fix="read that rank's error",
            )


def _sent(
    weights: Translated | None, announced: Announced, needed: set[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what any rank needs, in the order of the checkpoint, on every rank."""
    wanted: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(wanted, needed)
    names = [name for name in announced if any(name in each for each in wanted)]
    device = _wire()
    for parcel in _parcels(names, announced):
        size = _ALIGNED + sum(_room(announced.kind(name)) for name in parcel)
        buffer = torch.empty(size, dtype=torch.uint8, device=device)
        values = dict(_views(buffer, parcel, announced))
        failure: Exception | None = None
        if weights is not None:
            try:
                _read(weights, values)
            except Exception as error:  # noqa: BLE001 - the others wait for this parcel, and hear of it
                failure = error
            # The first byte says whether the rest is true.
            buffer[0] = failure is None
        dist.broadcast(buffer, src=0)
        if not buffer[0]:
            raise failure or CheckpointError(
                "Rank 0 could not read the checkpoint to its end",
                where=", ".join(parcel[:5]),
                fix="read that rank's error; the model is as it was, but for tensors that had data before",
            )
        yield from values.items()


def _parcels(names: list[str], announced: Announced) -> Iterator[list[str]]:
    """Yield names of tensors that are sent together; one that is larger than a parcel goes alone."""
    parcel: list[str] = []
    size = 0
    for name in names:
        room = _room(announced.kind(name))
        if parcel and size + room > _PARCEL:
            yield parcel
            parcel, size = [], 0
        parcel.append(name)
        size += room
    if parcel:
        yield parcel


def _bytes(kind: tuple[tuple[int, ...], torch.dtype]) -> int:
    return torch.Size(kind[0]).numel() * kind[1].itemsize


def _room(kind: tuple[tuple[int, ...], torch.dtype]) -> int:
    return -(-_bytes(kind) // _ALIGNED) * _ALIGNED


def _views(
    buffer: torch.Tensor, names: list[str], announced: Announced
) -> Iterator[tuple[str, torch.Tensor]]:
    place = _ALIGNED
    for name in names:
        shape, dtype = announced.kind(name)
        size = _bytes((shape, dtype))
        yield name, buffer[place : place + size].view(dtype).view(shape)
        place += _room((shape, dtype))


def _read(weights: Translated, values: Mapping[str, torch.Tensor]) -> None:
    placed = {name: weights.location(name) for name in values}
    fill((values[name], place) for name, place in placed.items() if place is not None)
    for name, place in placed.items():
        if place is None:
            values[name].copy_(weights[name])


def _wire() -> torch.device:
    """Return a device that the process group sends from: an accelerator if it can, else the host."""
    kinds = {each.partition(":")[0] for each in dist.get_backend_config().split(",")}
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type in kinds:
        return torch.device(accelerator.type, torch.accelerator.current_device_index())
    return torch.device("cpu")


__all__ = ["load_from_rank_0"]
