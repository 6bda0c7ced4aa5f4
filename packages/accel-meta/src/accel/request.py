"""What one call of ``prepare`` was given, and whether it can be meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accel_core.errors import PrepareError
from accel_parallel import foreign_parameters

from .preparation import Registry, role_of
from .units import PreparedUnits, parts_of


@dataclass(frozen=True, slots=True)
class Request:
    """One call of ``prepare``: everything in it, in order, and the named unit that each belongs to."""

    things: tuple[Any, ...]
    owners: tuple[str | None, ...]

    @classmethod
    def of(cls, args: Sequence[Any], units: Mapping[str, object]) -> Request:
        """Lay the call out flat. Raises PrepareError for units that are none, and for what is given twice."""
        things, owners = list(args), [None for _ in args]
        named: list[str | None] = []
        for name, given in units.items():
            parts = parts_of(name, given, role_of)
            things.extend(parts)
            named.extend(name for _ in parts)
        request = cls(tuple(things), (*owners, *named))
        request._reject_repeats()
        return request

    def _reject_repeats(self) -> None:
        seen: dict[int, int] = {}
        for position, thing in enumerate(self.things):
            if role_of(thing) is None:
                continue
            if id(thing) in seen:
                raise PrepareError(
                    f"prepare() was given the same {type(thing).__name__} twice",
                    where=f"{self._place(seen[id(thing)])} and {self._place(position)}",
                    fix="give each object once; for a second, independent loader build a second DataLoader",
                )
            seen[id(thing)] = position

    def _place(self, position: int) -> str:
        owner = self.owners[position]
        return f"argument {position}" if owner is None else f"unit {owner!r}"

    def model_of(self, name: str) -> Any:
        """Return the model that was given for the unit ``name``."""
        return next(thing for thing in self.of_unit(name) if role_of(thing) == "model")

    def of_unit(self, name: str | None) -> list[Any]:
        """Return the things that belong to the unit ``name``."""
        return [thing for thing, owner in zip(self.things, self.owners, strict=True) if owner == name]

    def names(self) -> list[str]:
        """Return the names of the units, in order."""
        return [name for name in dict.fromkeys(self.owners) if name is not None]

    def answer(self, made: Mapping[int, Any], units: PreparedUnits) -> Any:
        """Return what the call returns: what has no name in order, then the units if there are any."""
        plain = [made[position] for position, owner in enumerate(self.owners) if owner is None]
        result = (*plain, units) if len(units) else tuple(plain)
        return result[0] if len(result) == 1 else result


def check_names(registry: Registry, request: Request) -> None:
    """Raise PrepareError for a name that stands for something else already, and for models with two names."""
    taken = {name.casefold(): name for name in registry.named}
    for name in request.names():
        model = request.model_of(name)
        known = registry.made_of(model)
        unit = None if known is None else registry.unit_of(known)
        if unit is not None and unit.name != name:
            raise PrepareError(
                f"The model of unit {name!r} was prepared before, as unit {unit.name!r}",
                where=f"prepare({name}=...): {type(model).__name__}",
                fix=f"use the name {unit.name!r} again, or call free_memory() to start over",
            )
        # Names become names of files, and some file systems do not tell a from A.
        if unit is None and name.casefold() in taken:
            raise PrepareError(
                f"There is a unit {taken[name.casefold()]!r} already, with another model",
                where=f"prepare({name}=...): {type(model).__name__}",
                fix="choose another name, or call free_memory() to start over",
            )
        taken[name.casefold()] = name


def check_parts(request: Request, prepared: Callable[[object], object | None]) -> None:
    """Raise PrepareError when an optimizer or a scheduler stands in a unit that it does not train."""
    for name in request.names():
        parts = request.of_unit(name)
        model = request.model_of(name)
        optimizers = [part for part in parts if role_of(part) == "optimizer"]
        for optimizer in optimizers:
            for group, index, parameter in foreign_parameters(optimizer, model):
                raise PrepareError(
                    f"{type(optimizer).__name__} of unit {name!r} holds a parameter that its model has not",
                    where=f"param_groups[{group}]['params'][{index}], shape {tuple(parameter.shape)}",
                    fix="make it from the parameters of this very model; one over several stands without"
                    " a name, before the named units",
                )
        held = {id(part) for part in optimizers}
        held |= {id(getattr(part, "optimizer", None)) for part in optimizers}
        held |= {id(prepared(part)) for part in optimizers}
        for scheduler in parts:
            driven = getattr(scheduler, "optimizer", None)
            if role_of(scheduler) == "scheduler" and driven is not None and id(driven) not in held:
                raise PrepareError(
                    f"{type(scheduler).__name__} of unit {name!r} drives an optimizer of another",
                    where=f"{type(driven).__name__} with {len(driven.param_groups)} parameter group(s)",
                    fix="give the optimizer and its scheduler to the same unit",
                )


__all__ = ["Request", "check_names", "check_parts"]
