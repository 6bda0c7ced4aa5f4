"""``accel checkpoint diff``."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from ..checkpoint.address import shown
from . import show


def run(arguments: Namespace) -> int:
    """Print what differs; return 1 if anything does."""
    from .compare import compare, opened

    first, second = opened(arguments.first), opened(arguments.second)
    result = compare(first, second)
    if arguments.json:
        print(json.dumps(result.facts(), indent=2))
        return int(result.differs)
    print(f"--- {show.plain(shown(arguments.first))}{first.about}")
    print(f"+++ {show.plain(shown(arguments.second))}{second.about}")
    for name in result.removed:
        print(f"- {show.plain(name)}")
    for name in result.added:
        print(f"+ {show.plain(name)}")
    for name, change in result.changed.items():
        print(f"~ {show.plain(name)}: {_said(change)}")
    count = len(result.removed) + len(result.added) + len(result.changed)
    print(f"{count} differ, {result.same} are the same")
    return int(result.differs)


def _said(change: dict[str, Any]) -> str:
    if "values" in change:
        return f"{change['values']:,} of {change['of']:,} values differ, by at most {change['max_abs']:.6g}"
    return f"{show.plain(str(change['from']))} -> {show.plain(str(change['to']))}"


__all__ = ["run"]
