"""How values are written in environment variables, and read back.

A codec pairs the two directions with a check of the value itself, so that a configuration made in
code and one read from the environment are held to the same rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accel_core.spelling import nearest

_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE = frozenset({"0", "false", "f", "no", "n", "off"})


def parse_bool(text: str) -> bool:
    """Return the truth value that ``text`` spells; raise ValueError when it spells none."""
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("must be one of 1/true/yes/on or 0/false/no/off")


def parse_int(text: str) -> int:
    """Return the whole number that ``text`` spells; raise ValueError otherwise."""
    try:
        return int(text.strip())
    except ValueError:
        raise ValueError("must be a whole number") from None


def parse_float(text: str) -> float:
    """Return the number that ``text`` spells; raise ValueError otherwise."""
    try:
        return float(text.strip())
    except ValueError:
        raise ValueError("must be a number") from None


@dataclass(frozen=True, slots=True)
class Codec:
    """One kind of value: ``parse`` reads it, ``write`` turns it into text, ``check`` raises ValueError.

    ``parse(write(value)) == value`` for every value that passes ``check``.
    """

    kind: str
    parse: Callable[[str], Any]
    write: Callable[[Any], str]
    check: Callable[[Any], None]


def _refuse(reason: str) -> None:
    raise ValueError(reason)


def _check_bool(value: object) -> None:
    if not isinstance(value, bool):
        _refuse("must be True or False")


def _check_text(value: object) -> None:
    # A blank variable counts as one that is not set, so a blank text could not be read back.
    if not isinstance(value, str) or not value.strip():
        _refuse("must be a text that is not blank")
    elif "\0" in value:
        _refuse("must not contain a NUL character")


BOOL = Codec("true or false", parse_bool, lambda value: "true" if value else "false", _check_bool)
"""Written ``true`` or ``false``; 1/0, yes/no, on/off, t/f and y/n in any case are read too."""
TEXT = Codec("text", str, str, _check_text)
"""Any text, taken as it is."""


def whole(minimum: int | None = None) -> Codec:
    """Return the codec of whole numbers of at least ``minimum``."""

    def check(value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            _refuse("must be a whole number")
        elif minimum is not None and value < minimum:
            _refuse(f"must be at least {minimum}")

    return Codec("whole number", parse_int, str, check)


def number(minimum: float | None = None, maximum: float | None = None) -> Codec:
    """Return the codec of finite numbers between ``minimum`` and ``maximum``, both allowed."""

    def check(value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            _refuse("must be a number")
        elif not abs(value) < float("inf"):
            _refuse("must be finite")
        elif minimum is not None and value < minimum:
            _refuse(f"must be at least {minimum}")
        elif maximum is not None and value > maximum:
            _refuse(f"must be at most {maximum}")

    return Codec("number", parse_float, lambda value: repr(float(value)), check)


def choice(*values: str, numbered: bool = False) -> Codec:
    """Return the codec of one of ``values``, read in any case.

    ``numbered``: a value may also be given by its position, counted from 1.
    """
    spelled = {value.lower(): value for value in values}
    if numbered:
        spelled |= {str(index): value for index, value in enumerate(values, start=1)}

    def fail(word: str) -> str:
        near = nearest(word.strip().lower(), spelled)
        hint = "" if near is None else f"; did you mean {spelled[near]!r}?"
        return f"must be one of {', '.join(values)}{hint}"

    def parse(text: str) -> str:
        try:
            return spelled[text.strip().lower()]
        except KeyError:
            raise ValueError(fail(text)) from None

    def check(value: object) -> None:
        if value not in values:
            _refuse(fail(str(value)))

    return Codec(" | ".join(values), parse, str, check)


def _check_names(value: object) -> None:
    if not isinstance(value, tuple) or not value:
        _refuse("must be a tuple of names")
    elif any(not isinstance(name, str) or not name or name != name.strip() or "," in name for name in value):
        _refuse("must be a tuple of names without commas or outer spaces")


NAMES = Codec(
    "names separated by commas",
    lambda text: tuple(name.strip() for name in text.split(",") if name.strip()),
    ",".join,
    _check_names,
)
"""A tuple of names, written with commas between them."""


def _check_name(value: object) -> None:
    if (
        not isinstance(value, str)
        or not value
        or value != value.strip().lower()
        or any(c.isspace() for c in value)
    ):
        _refuse("must be a name in lower case without spaces")


OPEN_NAME = Codec("name", lambda text: text.strip().lower(), str, _check_name)
"""A name that is looked up among entry points later, to which a third party may have added its own."""

__all__ = [
    "BOOL",
    "NAMES",
    "OPEN_NAME",
    "TEXT",
    "Codec",
    "choice",
    "number",
    "parse_bool",
    "parse_float",
    "parse_int",
    "whole",
]
