"""Checks that settings share. Each yields a `Fault` for every field that is not as it must be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import Any

from accel_core.errors import Fault
from accel_core.spelling import guess


def as_member(owner: object, name: str, kind: type[Any]) -> None:
    """Replace a name by its enumeration member; what is none stays for the checks to report."""
    value = getattr(owner, name)
    if isinstance(value, str) and value in kind:
        object.__setattr__(owner, name, kind(value))


def flags(owner: object, *names: str, optional: bool = False) -> Iterator[Fault]:
    """Check that the fields ``names`` are True or False, or None when ``optional``."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, bool) and not (optional and value is None):
            yield Fault(name, value, "must be True or False" + (" or None" if optional else ""))


def whole(owner: object, name: str, *, minimum: int | None = None, optional: bool = False) -> Iterator[Fault]:
    """Check that field ``name`` is a whole number of at least ``minimum``, or None when ``optional``."""
    value = getattr(owner, name)
    if optional and value is None:
        return
    bound = "" if minimum is None else f" of at least {minimum}"
    # bool is an int to Python, but True is no number of steps.
    if isinstance(value, bool) or not isinstance(value, int) or (minimum is not None and value < minimum):
        yield Fault(name, value, f"must be a whole number{bound}" + (" or None" if optional else ""))


def number(
    owner: object, name: str, *, above: float | None = None, below: float | None = None
) -> Iterator[Fault]:
    """Check that field ``name`` is a finite number above ``above`` and below ``below``, both excluded."""
    value = getattr(owner, name)
    bounds = [f"more than {above}"] if above is not None else []
    bounds += [f"less than {below}"] if below is not None else []
    reason = " ".join(["must be a finite number", " and ".join(bounds)]).strip()
    wrong_kind = isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value)
    if wrong_kind or (above is not None and value <= above) or (below is not None and value >= below):
        yield Fault(name, value, reason)


def one_of(owner: object, name: str, choices: Iterable[Any], *, optional: bool = False) -> Iterator[Fault]:
    """Check that field ``name`` is one of ``choices``, or None when ``optional``; name the nearest."""
    value = getattr(owner, name)
    if optional and value is None:
        return
    known = [str(choice) for choice in choices]
    if not isinstance(value, str) or str(value) not in known:
        reason = f"must be one of {', '.join(known)}" + (" or None" if optional else "")
        yield Fault(name, value, reason, guess(str(value), known))


def instance(
    owner: object, name: str, kind: type, *, fix: str = "", optional: bool = True
) -> Iterator[Fault]:
    """Check that field ``name`` is an instance of ``kind``, or None when ``optional``."""
    value = getattr(owner, name)
    if not isinstance(value, kind) and not (optional and value is None):
        yield Fault(name, value, f"must be a {kind.__name__}" + (" or None" if optional else ""), fix)


def keys(owner: object, name: str, known: Iterable[str], *, optional: bool = True) -> Iterator[Fault]:
    """Check that field ``name`` is a mapping with none but ``known`` keys; name the nearest of each."""
    value = getattr(owner, name)
    if optional and value is None:
        return
    if not isinstance(value, Mapping):
        yield Fault(name, value, "must be a dict" + (" or None" if optional else ""))
        return
    listed = list(known)
    for key in value:
        if key not in listed:
            fix = guess(str(key), listed) or f"known: {', '.join(listed)}"
            yield Fault(f"{name}[{key!r}]", value[key], "is an unknown key", fix)


__all__ = ["as_member", "flags", "instance", "keys", "number", "one_of", "whole"]
