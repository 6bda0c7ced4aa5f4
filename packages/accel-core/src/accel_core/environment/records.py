"""Frozen records whose fields are environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Self

from accel_core.errors import ConfigError, Fault

from .codecs import Codec


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable: its name, its field, how it is written, and the flag of ``launch`` for it."""

    name: str
    field: str
    codec: Codec
    flag: str | None


def variable(name: str, codec: Codec, *, flag: str | None = None) -> Any:
    """Return a dataclass field that is None until environment variable ``name`` is set."""
    return field(default=None, metadata={"variable": name, "codec": codec, "flag": flag})


def _described(item: Field[Any]) -> Variable:
    data = item.metadata
    return Variable(data["variable"], item.name, data["codec"], data["flag"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Base of the families of variables. A field that is None stands for a variable that is not set.

    A variable that is set to nothing but spaces counts as not set, as in ``VARIABLE= command``.
    """

    def __post_init__(self) -> None:
        found = list(self.faults())
        if found:
            raise ConfigError(type(self).__name__, found)

    def faults(self) -> Iterator[Fault]:
        """Yield everything that is wrong with the values."""
        for item in self.variables():
            value = getattr(self, item.field)
            if value is None:
                continue
            try:
                item.codec.check(value)
            except ValueError as error:
                yield Fault(item.field, value, str(error))

    @classmethod
    def variables(cls) -> tuple[Variable, ...]:
        """Return the variables of this family in the order of its fields."""
        return tuple(_described(item) for item in fields(cls))

    @classmethod
    def decode(cls, environ: Mapping[str, str]) -> tuple[dict[str, Any], list[Fault]]:
        """Return the values that ``environ`` sets, by field, and what is wrong with the others."""
        values: dict[str, Any] = {}
        found: list[Fault] = []
        for item in cls.variables():
            text = environ.get(item.name, "")
            if not text.strip():
                continue
            try:
                value = item.codec.parse(text)
                item.codec.check(value)
            except ValueError as error:
                found.append(Fault(item.name, text, str(error), "correct or unset this environment variable"))
            else:
                values[item.field] = value
        return values, found

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Return the record that ``environ`` (the process's by default) describes.

        Raises ConfigError with every variable whose value cannot be read.
        """
        values, found = cls.decode(os.environ if environ is None else environ)
        if found:
            raise ConfigError("environment", found)
        return cls(**values)

    def to_environ(self) -> dict[str, str]:
        """Return the variables that describe this record; ``from_environ`` gives back an equal one."""
        return {
            item.name: item.codec.write(value)
            for item in self.variables()
            if (value := getattr(self, item.field)) is not None
        }

    def values(self) -> dict[str, Any]:
        """Return the fields that are set, by name."""
        return {
            item.field: value for item in self.variables() if (value := getattr(self, item.field)) is not None
        }


__all__ = ["Record", "Variable", "variable"]
