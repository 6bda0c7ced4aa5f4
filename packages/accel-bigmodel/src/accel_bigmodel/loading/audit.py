"""A checkpoint beside a model, before anything is read: what goes where, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from ..weights.mapped import Location
from .report import CheckpointReport
from .slots import Slot, extras_of, slots_of


class Weights(Protocol):
    """What is asked of the weights of a checkpoint."""

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        ...

    def __contains__(self, name: object) -> bool:
        """Tell whether there is such a tensor."""
        ...

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU."""
        ...

    def location(self, name: str) -> Location | None:
        """Return where its bytes are, if that is known."""
        ...

    def same_as(self, name: str) -> str:
        """Return the name that its bytes are stored under."""
        ...

    def kind(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return its shape and its dtype."""
        ...

    def equal(self, one: str, other: str) -> bool:
        """Tell whether two of them have the same values."""
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """In which dtype tensors are loaded: ``dtype``, or that of the model; modules of ``wide`` in float32."""

    dtype: torch.dtype | None = None
    wide: Sequence[str] = ()

    def target(self, slot: Slot, stored: torch.dtype) -> torch.dtype:
        """Return the dtype of ``slot`` after the load."""
        if not _real(stored):
            return slot.tensor.dtype
        if any(_inside(spot.name, part) for spot in slot.spots for part in self.wide):
            return torch.float32
        return slot.tensor.dtype if self.dtype is None else self.dtype


def _inside(name: str, part: str) -> bool:
    return f".{part}." in f".{name}."


@dataclass(frozen=True, slots=True)
class Match:
    """A tensor of the model, the name of its value in the checkpoint, and the dtype that it gets."""

    slot: Slot
    source: str
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found: tensors and their values, modules that keep more, and the report.

    ``computed``: tensors that would stay without data, and are in no checkpoint of this model.
    """

    matches: tuple[Match, ...]
    extras: tuple[tuple[nn.Module, str], ...]
    report: CheckpointReport
    computed: tuple[str, ...] = ()


def audit(
    model: nn.Module,
    weights: Weights,
    rules: Rules,
    *,
    shape_of: Callable[[torch.Tensor], tuple[int, ...]] = lambda tensor: tuple(tensor.shape),
) -> Audit:
    """Compare names, shapes and dtypes. Values are compared only where two stored tensors become one."""
    matches: list[Match] = []
    missing, on_meta, computed, known = [], [], [], set()
    mismatched: dict[str, str] = {}
    tied: dict[str, str] = {}
    recast: dict[str, str] = {}
    for slot in slots_of(model):
        names = [spot.name for spot in slot.spots]
        meta = slot.tensor.device.type == "meta"
        there = [name for name in names if name in weights] if slot.saved or meta else []
        known.update(there)
        if not there:
            missing += [slot.name] if slot.saved else []
            on_meta += names if meta else []
            computed += [] if slot.saved or not meta else names
            continue
        wrong = _differences(slot, there, weights, rules, shape_of)
        if wrong:
            mismatched.update(wrong)
            continue
        _, stored = weights.kind(there[0])
        dtype = rules.target(slot, stored)
        if dtype != stored:
            recast[there[0]] = f"{_text(stored)} to {_text(dtype)}"
        if len(there) < len(names):
            tied |= {name: there[0] for name in names if name not in there}
        matches.append(Match(slot, there[0], dtype))
    extras = [(module, name) for name, module in extras_of(model)]
    missing += [name for _, name in extras if name not in weights]
    known.update(name for _, name in extras)
    used = {weights.same_as(name) for name in known if name in weights}
    unexpected = [name for name in weights if name not in known and weights.same_as(name) not in used]
    mismatched |= _scales(recast, unexpected)
    report = CheckpointReport(
        restored=tuple(spot.name for match in matches for spot in match.slot.spots),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=mismatched,
        recast=recast,
        tied=tied,
        left_on_meta=tuple(on_meta),
    )
    here = tuple((module, name) for module, name in extras if name in weights)
    return Audit(tuple(matches), here, report, tuple(computed))


def _differences(
    slot: Slot,
    names: Sequence[str],
    weights: Weights,
    rules: Rules,
    shape_of: Callable[[torch.Tensor], tuple[int, ...]],
) -> dict[str, str]:
    """Return what is wrong with the stored tensors ``names``, which become this one."""
    wrong = {}
    wanted = shape_of(slot.tensor)
    for name in names:
        shape, dtype = weights.kind(name)
        target = rules.target(slot, dtype)
        if shape != wanted:
            wrong[name] = f"shape {shape} in the checkpoint, {wanted} in the model"
        elif not _kindred(dtype, target):
            wrong[name] = f"{_text(dtype)} in the checkpoint, {_text(target)} in the model"
    if not wrong and len(names) > 1 and len({weights.same_as(name) for name in names}) > 1:
        for name in names[1:]:
            if not weights.equal(names[0], name):
                wrong[name] = f"other values than {names[0]!r}, though in the model they are one tensor"
    return wrong


def _scales(recast: Mapping[str, str], unexpected: Iterable[str]) -> dict[str, str]:
    """Return tensors of 8 bits that would lose the scale that is stored beside them."""
    narrow = tuple(name for name, text in recast.items() if text.startswith("float8"))
    if not narrow:
        return {}
    found = {}
    for other in unexpected:
        for name in narrow:
            if other.startswith(name):
                found[name] = f"{recast[name].partition(' ')[0]} in the checkpoint, scaled by {other!r}"
    return found


def _kindred(stored: torch.dtype, target: torch.dtype) -> bool:
    """Tell whether numbers of one type may become numbers of the other without losing what they are."""
    if _real(stored) or _real(target):
        return _real(stored) == _real(target) and stored.is_complex == target.is_complex
    return torch.can_cast(stored, target)


def _real(dtype: torch.dtype) -> bool:
    """Tell whether numbers of this type have fractions."""
    return dtype.is_floating_point or dtype.is_complex


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


__all__ = ["Audit", "Match", "Rules", "Weights", "audit"]
