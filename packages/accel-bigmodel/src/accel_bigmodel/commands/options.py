"""Options that commands of this package have in common."""

from __future__ import annotations

import argparse
from typing import Any


def option(parser: Any, name: str, **keywords: Any) -> None:
    """Add an option in both of its spellings."""
    spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    parser.add_argument(*spellings, **keywords)


def count(text: str) -> int:
    """Return a number of at least 1; raise what argparse reports as a mistake of the caller."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


def read_from(parser: Any) -> None:
    """Add where a model is read from."""
    where = parser.add_argument_group("where it is read from")
    option(where, "revision", metavar="NAME", help="a branch, tag or commit on the Hub")
    option(where, "offline", action="store_true", help="ask no server: folders and the cache alone")


__all__ = ["count", "option", "read_from"]
