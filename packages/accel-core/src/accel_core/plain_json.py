"""JSON in and out, with nothing changed or dropped on the way."""

from __future__ import annotations

import json
from typing import Any

from .errors import CheckpointError

_DEEPEST = 200


def encode(value: Any, where: str) -> bytes:
    """Return ``value`` as JSON; raise CheckpointError with the place of what would not come back equal.

    Infinities and NaN are written as Python's json module writes and reads them.
    """
    wrong = _unfit(value, "value", 0)
    if wrong:
        raise CheckpointError(
            f"Not JSON: {wrong}",
            where=where,
            fix="use dicts with string keys, lists, strings, numbers, booleans and None",
        )
    try:
        return json.dumps(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Not JSON: {error}", where=where) from error


def _unfit(value: Any, place: str, depth: int) -> str:
    """Return what would come back as something else, and where it is; an empty text when all is well."""
    if depth > _DEEPEST:
        return f"{place[:80]}... is more than {_DEEPEST} levels deep, or contains itself"
    if isinstance(value, list):
        inner = (_unfit(each, f"{place}[{number}]", depth + 1) for number, each in enumerate(value))
        return next(filter(None, inner), "")
    if isinstance(value, dict):
        for key, each in value.items():
            if type(key) is not str:
                return f"{place} has the key {key!r}, a {type(key).__name__}"
            wrong = _unfit(each, f"{place}[{key!r}]", depth + 1)
            if wrong:
                return wrong
        return ""
    if value is None or isinstance(value, (str, bool, int, float)):
        return ""
    return f"{place} is a {type(value).__name__}"


def parse(text: bytes, where: str) -> Any:
    """Return what ``text`` says; raise CheckpointError when it is not JSON or names a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(
            f"Not readable as JSON: {reason[:200]}",
            where=where,
            fix="use another checkpoint: this one is damaged",
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} is there twice")
    return result


__all__ = ["encode", "parse"]
