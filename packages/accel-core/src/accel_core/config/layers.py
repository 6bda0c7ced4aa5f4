"""Where each setting comes from: ordered layers, the value that wins, and the values that lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from accel_core.errors import ConfigError, Fault, UnknownNameError
from accel_core.spelling import guess

CODE = "code"
"""What the program passes."""
COMMAND_LINE = "command line"
"""The flags of ``accel launch``."""
ENVIRONMENT = "environment"
"""Environment variables, see `accel_core.environment`."""
CONFIG_FILE = "config file"
"""The YAML file, see `accel_core.config.read_config`."""
DEFAULT = "default"
"""What holds when nobody says anything."""
ORDER = (CODE, COMMAND_LINE, ENVIRONMENT, CONFIG_FILE, DEFAULT)
"""The documented order, strongest first."""

_SECRET = ("secret", "token", "password", "api_key", "access_key")


@dataclass(frozen=True, slots=True)
class Layer:
    """What one source says. None is "nothing said", except in the layer of defaults.

    ``labels`` tells for a field where exactly it was said: a variable, a flag, a file and line.
    """

    name: str
    values: Mapping[str, Any]
    labels: Mapping[str, str] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """Return the layer's name, with the exact place when it is known."""
        label = self.labels.get(name)
        return f"{self.name} ({label})" if label else self.name


@dataclass(frozen=True, slots=True)
class Said:
    """One value and where it was said."""

    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings of a run, each with where it comes from and what it overrides."""

    said: Mapping[str, tuple[Said, ...]]
    """For each field what was said, strongest first; never empty."""

    def _of(self, name: str) -> tuple[Said, ...]:
        try:
            return self.said[name]
        except KeyError:
            raise UnknownNameError("setting", name, self.said) from None

    def value(self, name: str) -> Any:
        """Return the value that holds. Raises UnknownNameError for a field that is none."""
        return self._of(name)[0].value

    def origin(self, name: str) -> str:
        """Return where that value was said."""
        return self._of(name)[0].origin

    def losers(self, name: str) -> tuple[Said, ...]:
        """Return what was said too and does not hold, strongest first; the default included."""
        return self._of(name)[1:]

    def values(self) -> dict[str, Any]:
        """Return every value that holds."""
        return {name: said[0].value for name, said in self.said.items()}

    def explain(self) -> str:
        """Return a table of every setting: value, where it comes from, what lost. Secrets are hidden."""
        rows = [("setting", "value", "from", "overrides")]
        for name, said in self.said.items():
            lost = ", ".join(f"{_shown(name, one.value)} from {one.origin}" for one in said[1:])
            rows.append((name, _shown(name, said[0].value), said[0].origin, lost or "-"))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        rows.insert(1, ("-" * widths[0], "-" * widths[1], "-" * widths[2], "-" * widths[3]))
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def _shown(name: str, value: object) -> str:
    hidden = value is not None and any(word in name.lower() for word in _SECRET)
    return "(hidden)" if hidden else repr(value)


@dataclass(frozen=True, slots=True, init=False)
class Layers:
    """Ordered layers of settings, strongest first; the last holds the defaults and so names every field.

    >>> layers = Layers(Layer(CODE, {"cpu": True}), Layer(DEFAULT, {"cpu": False, "debug": False}))
    >>> layers.resolve().origin("cpu")
    'code'
    """

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer) -> None:
        if not layers:
            raise TypeError("Layers needs at least the layer of defaults")
        object.__setattr__(self, "layers", layers)

    def resolve(self) -> Resolved:
        """Return which value of each field holds.

        Raises ConfigError with every key that is no field, its layer, and the nearest field.
        """
        *said, defaults = self.layers
        known = defaults.values
        found = [
            Fault(
                key,
                value,
                f"is no setting, said by {layer.origin(key)}",
                guess(key, known) or f"known: {', '.join(sorted(known))}",
            )
            for layer in said
            for key, value in layer.values.items()
            if key not in known
        ]
        if found:
            raise ConfigError("settings", found)
        table = {
            name: (
                *(
                    Said(layer.values[name], layer.origin(name))
                    for layer in said
                    if layer.values.get(name) is not None
                ),
                Said(default, defaults.origin(name)),
            )
            for name, default in known.items()
        }
        return Resolved(MappingProxyType(table))


__all__ = [
    "CODE",
    "COMMAND_LINE",
    "CONFIG_FILE",
    "DEFAULT",
    "ENVIRONMENT",
    "ORDER",
    "Layer",
    "Layers",
    "Resolved",
    "Said",
]
