"""``accel checkpoint ls``."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from ..checkpoint.address import is_uri, shown
from ..checkpoint.listing import checkpoints
from . import show
from .found import Found, newest_good, shelf_of

_MOST_FAULTS = 3
_TITLES = ("NAME", "STEP", "SIZE", "AGE", "WORLD", "VERIFIED")


def run(arguments: Namespace) -> int:
    """Print a line for each checkpoint."""
    directory = arguments.directory
    shelf = shelf_of(directory)
    found = [shelf.look(each, arguments.verify) for each in shelf.those(directory)]
    latest = newest_good(found)
    if arguments.json:
        facts = {
            "directory": shown(directory),
            "latest": None if latest is None else latest.name,
            "checkpoints": [each.facts() for each in found],
        }
        print(json.dumps(facts, indent=2))
        return 0
    if not found:
        print(f"No checkpoints in {show.plain(shown(directory))}{_elsewhere(directory)}")
        return 0
    rows = [_row(each) for each in found]
    notes = [_notes(each) for each in found]
    print("\n".join(show.table(_TITLES, rows, notes, show.width())))
    return 0


def _row(each: Found) -> tuple[str, ...]:
    return (
        show.plain(each.name),
        "-" if each.step is None else str(each.step),
        show.size(each.size),
        show.age(each.time),
        "-" if each.world_size is None else str(each.world_size),
        each.checked if each.good else "DAMAGED",
    )


def _notes(each: Found) -> list[str]:
    shown = [show.plain(fault) for fault in each.faults[:_MOST_FAULTS]]
    rest = len(each.faults) - len(shown)
    return [*shown, f"and {rest} more files"] if rest else shown


def _elsewhere(directory: str) -> str:
    """Return where the run that uses this folder for its project keeps them."""
    if is_uri(directory):
        return ""
    inner = Path(directory) / "checkpoints"
    return f"; there are some in {show.plain(str(inner))}" if checkpoints(inner) else ""


__all__ = ["run"]
