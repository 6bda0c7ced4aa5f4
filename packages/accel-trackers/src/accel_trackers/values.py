"""Turn what users log into strict JSON and back.

JSON has no NaN and no infinity. They are written as ``{"$float": "nan"}`` (``"inf"``, ``"-inf"``),
so that every line is JSON to every reader, nothing is lost, and no string is mistaken for a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

from accel_core.errors import DataError

_MARK = "$float"


def encode(value: Any, where: str) -> Any:
    """Return ``value`` as JSON can hold it; ``where`` names it in errors.

    Scalars of tensor libraries give their ``item()``, arrays their ``tolist()``. Raises DataError
    for a value that has no faithful form in JSON.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return encode(value.value, where)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_MARK: _spell(value)}
    if isinstance(value, Mapping):
        return _mapping(value, where)
    if isinstance(value, (list, tuple)):
        return [encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: encode(getattr(value, item.name), f"{where}.{item.name}") for item in fields(value)
        }
    return _array(value, where)


def _spell(value: float) -> str:
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def _mapping(value: Mapping[Any, Any], where: str) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str) or key == _MARK:
            raise DataError(
                f"The key {key!r} cannot be logged",
                where=where,
                fix="keys must be strings, and '$float' is taken",
            )
    return {str(key): encode(item, f"{where}[{key!r}]") for key, item in value.items()}


def _array(value: Any, where: str) -> Any:
    """Tensors and arrays of any library, known by their methods: none has to be importable here."""
    plain = getattr(value, "tolist", None) or getattr(value, "item", None)
    if callable(plain):
        try:
            found = plain()
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"A {type(value).__name__} cannot be logged: {error}", where=where) from error
        if type(found) is not type(value):
            return encode(found, where)
    raise DataError(
        f"A {type(value).__name__} cannot be logged as JSON",
        where=where,
        fix="log a number, a string, a list or a mapping; str(...) keeps the name of anything",
    )


def decode(value: Any) -> Any:
    """Return what `encode` was given, numbers and containers of JSON."""
    if isinstance(value, dict):
        if value.keys() == {_MARK}:
            return float(value[_MARK])
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value


__all__ = ["decode", "encode"]
