"""Bars of letters, in colours where rich is installed and the terminal has any."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec

from .picture import KINDS, Bar, Picture

_LETTERS = "█▓▒░·"
_PLAIN = "#=~-."
_COLOURS = ("blue", "magenta", "yellow", "cyan", "bright_black")
_WIDEST, _NARROWEST = 100, 40

Span = tuple[str, str]
"""A text and its colour, empty for that of the terminal."""


def show(picture: Picture) -> None:
    """Print ``picture`` as wide as the terminal is, within reason."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    letters = _LETTERS if _writes(_LETTERS, encoding) else _PLAIN
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ and find_spec("rich") is not None
    for line in drawn(picture, columns(), letters):
        if coloured:
            _print_rich(line)
        else:
            text = "".join(text for text, _ in line)
            print(text.encode(encoding, "replace").decode(encoding).rstrip())


def columns() -> int:
    """Return how wide to write: as wide as the terminal is, within reason."""
    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns))


def drawn(picture: Picture, width: int, letters: str = _LETTERS) -> Iterator[list[Span]]:
    """Give the lines of ``picture``, none wider than ``width``."""
    for line in textwrap.wrap(plain(picture.title), width):
        yield [(line, "")]
    yield []
    side = max(len(bar.device) for bar in picture.bars)
    told = max(len(bar.said) for bar in picture.bars)
    room = max(8, width - side - told - 4)
    for bar in picture.bars:
        yield [(f"{bar.device:<{side}}  ", ""), *_spans(bar, room, letters), (f"  {bar.said:>{told}}", "")]
        for line in textwrap.wrap(plain(", ".join(bar.holds)), width - side - 2, break_on_hyphens=False):
            yield [(" " * (side + 2) + line, _COLOURS[-1])]
    yield []
    legend: list[Span] = []
    for kind in picture.kinds:
        legend += [(letters[kind], _COLOURS[kind]), (f" {KINDS[kind]}   ", "")]
    yield legend
    for note in picture.notes:
        for line in textwrap.wrap(plain(note), width, initial_indent="- ", subsequent_indent="  "):
            yield [(line, "")]


def _spans(bar: Bar, room: int, letters: str) -> list[Span]:
    return [
        (letters[kind] * count, _COLOURS[kind]) for kind, count in enumerate(cells(bar.pieces, room)) if count
    ]


def cells(pieces: tuple[int, ...], room: int) -> list[int]:
    """Return how many of ``room`` cells each piece gets: what is there at all gets one."""
    total = sum(pieces)
    if not total:
        return [0] * (len(pieces) - 1) + [room]
    ideal = [piece * room / total for piece in pieces]
    found = [max(1, int(each)) if each else 0 for each in ideal]
    while sum(found) != room:
        step = 1 if sum(found) < room else -1
        # Whoever is furthest from what is right gives or takes, as long as something stays visible.
        able = [kind for kind in range(len(found)) if ideal[kind] and (step > 0 or found[kind] > 1)]
        if not able:
            break
        found[max(able, key=lambda kind: step * (ideal[kind] - found[kind]))] += step
    return found


def plain(text: str) -> str:
    """Return ``text`` without what would steer a terminal but its lines: names may hold anything."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text
    )


def _writes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _print_rich(line: list[Span]) -> None:
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble(*((part, colour or "default") for part, colour in line))
    Console(highlight=False, soft_wrap=True).print(text)


__all__ = ["cells", "columns", "drawn", "plain", "show"]
