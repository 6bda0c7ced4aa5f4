"""The base of settings: frozen, and checked when they are made, every fault at once."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Self

from accel_core.errors import ConfigError, Fault

_SHAPES: set[type[Config]] = set()
"""The classes that were found to have the right shape."""


def _refuse_other_shapes(cls: type[Config]) -> None:
    """Raise TypeError unless ``cls`` is itself a frozen dataclass, or says that it is meant to change."""
    if cls in _SHAPES:
        return
    params = vars(cls).get("__dataclass_params__")
    if params is None or not (params.frozen or cls.changes):
        raise TypeError(f"{cls.__name__} must be a frozen dataclass: @dataclass(frozen=True, slots=True)")
    _SHAPES.add(cls)


class Config:
    """Settings that cannot change once made. Raises ConfigError with every wrong value.

    A subclass is a frozen dataclass and overrides ``faults``; another shape is a TypeError when
    the first object is made.
    """

    __slots__ = ()

    changes: ClassVar[bool] = False
    """True for the few classes whose documented use is to change them."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make an object of a class that has the right shape."""
        _refuse_other_shapes(cls)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self.validate()

    def faults(self) -> Iterator[Fault]:
        """Yield everything that is wrong; nothing in the base."""
        yield from ()

    def validate(self) -> None:
        """Raise ConfigError with everything that ``faults`` finds."""
        found = list(self.faults())
        if found:
            raise ConfigError(type(self).__name__, found)


@dataclass(frozen=True, slots=True)
class KwargsHandler(Config):
    """Settings that are handed on as keyword arguments to something of torch."""

    def to_dict(self) -> dict[str, Any]:
        """Return every setting by name, copied."""
        return {item.name: deepcopy(getattr(self, item.name)) for item in fields(self)}

    def to_kwargs(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults, so that what they configure keeps its own.

        A subclass may have other defaults; those of its documented base are what torch's are like.
        """
        lineage = [cls for cls in type(self).__mro__ if issubclass(cls, KwargsHandler)]
        base = lineage[-2] if len(lineage) > 1 else KwargsHandler
        defaults = {**defaults_of(type(self)), **defaults_of(base)}
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in defaults or value != defaults[name]
        }


def defaults_of(cls: type[Any]) -> dict[str, Any]:
    """Return the defaults of a dataclass by field."""
    assert is_dataclass(cls)
    found: dict[str, Any] = {}
    for item in fields(cls):
        if item.default is not MISSING:
            found[item.name] = item.default
        elif item.default_factory is not MISSING:
            found[item.name] = item.default_factory()
    return found


__all__ = ["Config", "KwargsHandler", "defaults_of"]
