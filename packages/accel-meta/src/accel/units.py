"""Named units: what ``prepare(actor=(model, optimizer), critic=...)`` takes and gives back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from accel_core.errors import PrepareError, UnknownNameError
from accel_parallel import AcceleratedOptimizer, AcceleratedScheduler

_UNNAMED = re.compile(r"model_\d+")


@dataclass(frozen=True, slots=True)
class PreparedUnit:
    """One model with what trains it, prepared. Unpacks into its parts, in the order in which they were given.

    >>> actor, actor_optimizer = accelerator.prepare(actor=(actor, actor_optimizer)).actor
    """

    name: str
    model: nn.Module = field(repr=False)
    optimizers: tuple[AcceleratedOptimizer, ...] = field(default=(), repr=False)
    schedulers: tuple[AcceleratedScheduler, ...] = field(default=(), repr=False)
    loaders: tuple[DataLoader[Any], ...] = field(default=(), repr=False)
    parts: tuple[Any, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, name: str, parts: Sequence[Any]) -> PreparedUnit:
        """Return the unit of prepared ``parts``, one of which is the model."""
        (model,) = (part for part in parts if isinstance(part, nn.Module))
        return cls(
            name=name,
            model=model,
            optimizers=tuple(part for part in parts if isinstance(part, AcceleratedOptimizer)),
            schedulers=tuple(part for part in parts if isinstance(part, AcceleratedScheduler)),
            loaders=tuple(part for part in parts if isinstance(part, DataLoader)),
            parts=tuple(parts),
        )

    def joined(self, other: PreparedUnit) -> PreparedUnit:
        """Return the unit with the parts of ``other`` that it has not."""
        known = {id(part) for part in self.parts}
        return self.of(self.name, [*self.parts, *(part for part in other.parts if id(part) not in known)])

    @property
    def optimizer(self) -> AcceleratedOptimizer:
        """Return the optimizer; raise PrepareError when there is none or more than one."""
        return self.optimizers[_the_one(self, "optimizer", self.optimizers)]

    @property
    def scheduler(self) -> AcceleratedScheduler:
        """Return the scheduler; raise PrepareError when there is none or more than one."""
        return self.schedulers[_the_one(self, "scheduler", self.schedulers)]

    @property
    def loader(self) -> DataLoader[Any]:
        """Return the loader; raise PrepareError when there is none or more than one."""
        return self.loaders[_the_one(self, "loader", self.loaders)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def _the_one(unit: PreparedUnit, role: str, found: Sequence[Any]) -> int:
    """Return the index of the only one found."""
    if len(found) != 1:
        raise PrepareError(
            f"Unit {unit.name!r} has {len(found) or 'no'} {role}{'s' if len(found) > 1 else ''}",
            where=f"units.{unit.name}.{role}",
            fix=f"give one to prepare({unit.name}=...)" if not found else f"use .{role}s, or unpack the unit",
        )
    return 0


class PreparedUnits:
    """The units of one call of ``prepare``: by attribute, by name in brackets, or unpacked in order."""

    __slots__ = ("_units",)

    def __init__(self, units: Mapping[str, PreparedUnit]) -> None:
        self._units = dict(units)

    def __getattr__(self, name: str) -> PreparedUnit:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._units:
            raise AttributeError(f"no unit is called {name!r}; there are: {', '.join(self._units)}")
        return self._units[name]

    def __getitem__(self, name: str) -> PreparedUnit:
        if name not in self._units:
            raise UnknownNameError("unit", str(name), self._units)
        return self._units[name]

    def __iter__(self) -> Iterator[PreparedUnit]:
        return iter(self._units.values())

    def __len__(self) -> int:
        return len(self._units)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._units]

    def __repr__(self) -> str:
        return f"PreparedUnits({', '.join(self._units)})"


def parts_of(name: str, given: object, role_of: Any) -> tuple[Any, ...]:
    """Return the parts that the keyword ``name`` of ``prepare`` was given; one of them is a model.

    Raises PrepareError for a name that cannot name a unit, and for parts that make none.
    """
    if not name.isidentifier() or name.startswith("_") or _UNNAMED.fullmatch(name):
        raise PrepareError(
            f"A unit cannot be called {name!r}",
            where=f"prepare({name}=...)",
            fix="use a name like a variable's, without _ in front; model_0, model_1, ... are unnamed models",
        )
    parts = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    for position, part in enumerate(parts):
        if role_of(part) is None:
            raise PrepareError(
                f"Unit {name!r} was given {_kind(part)}",
                where=f"prepare({name}=...)" + (f", part {position}" if part is not given else ""),
                fix="give a model, or a tuple of it with its optimizers, schedulers and loaders",
            )
    models = [part for part in parts if role_of(part) == "model"]
    if len(models) != 1:
        count = f"{len(models)} models" if models else "no model"
        raise PrepareError(
            f"Unit {name!r} was given {count}: a unit is one model with what trains it",
            where=f"prepare({name}=...): {', '.join(type(part).__name__ for part in parts) or 'nothing'}",
            fix="name each model; an optimizer over several of them stands without a name, before the units",
        )
    return parts


def _kind(part: object) -> str:
    return "None" if part is None else f"a {type(part).__name__}"


__all__ = ["PreparedUnit", "PreparedUnits", "parts_of"]
