"""Sizes, ages and tables for people, whatever the width of their terminal."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime

_NARROWEST = 20
_STEPS = ((60, "s", 1), (3600, "min", 60), (86400, "h", 3600), (float("inf"), "d", 86400))


def size(count: int | None) -> str:
    """Return a number of bytes in powers of 1000."""
    if count is None:
        return "-"
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:.3g} {unit}"


def age(time: str | None, now: datetime | None = None) -> str:
    """Return how long ago ``time`` was, an ISO 8601 text with a time zone."""
    try:
        then = datetime.fromisoformat(time or "")
        seconds = ((now or datetime.now(UTC)) - then).total_seconds()
    except (ValueError, TypeError):
        return "-"
    # The clock of who wrote it may be ahead of ours.
    seconds = max(seconds, 0)
    _, unit, divisor = next(each for each in _STEPS if seconds < each[0])
    return f"{int(seconds // divisor)} {unit}"


def plain(text: str) -> str:
    """Return ``text`` without what would steer a terminal: names of files may hold anything."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def width() -> int:
    """Return the columns of the terminal; when the output goes elsewhere, as many as it likes."""
    try:
        return int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        pass
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return sys.maxsize


def table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[Sequence[str]], room: int
) -> list[str]:
    """Return the lines of a table, each row followed by its ``notes``.

    The first column is to the left, the others to the right. Where ``room`` columns are too few, a row is
    its first cell and, below it, the others with their titles.
    """
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines: list[str] = []
    if sum(widths) + 2 * (len(widths) - 1) <= room:
        lines.append(_line(titles, widths))
        show = [[_line(row, widths)] for row in rows]
    else:
        show = [[row[0], *_wrapped(", ".join(map(_titled, titles[1:], row[1:])), room)] for row in rows]
    for shown, below in zip(show, notes, strict=True):
        lines += shown
        lines += [line for note in below for line in _wrapped(note, room)]
    return lines


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    rest = (cell.rjust(wide) for cell, wide in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([first, *rest]).rstrip()


def _titled(title: str, cell: str) -> str:
    return f"{title.lower()} {cell}"


def _wrapped(text: str, room: int) -> list[str]:
    return textwrap.wrap(
        text, max(room, _NARROWEST), initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
    )


__all__ = ["age", "plain", "size", "table", "width"]
