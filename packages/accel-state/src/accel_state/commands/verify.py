"""``accel checkpoint verify``."""

from __future__ import annotations

import json
from argparse import Namespace

from . import show
from .found import look, those


def run(arguments: Namespace) -> int:
    """Print what is wrong with each checkpoint; return 1 if anything is."""
    # All paths are looked up before the first is read, which may take long.
    wanted = {each.path: each for path in arguments.paths for each in those(path)}
    results = []
    for each in wanted.values():
        found = look(each, arguments.verify)
        results.append(found)
        if arguments.json:
            continue
        name = show.plain(str(found.path))
        if found.good:
            print(f"{name}: {found.checked} are as saved ({found.files} files, {show.size(found.size)})")
        else:
            print(f"{name}: DAMAGED")
            for fault in found.faults:
                print(f"    {show.plain(fault)}")
    if arguments.json:
        print(json.dumps([found.facts() for found in results], indent=2))
    elif not results:
        print(f"No checkpoints in {', '.join(map(show.plain, arguments.paths))}")
    return int(any(not found.good for found in results))


__all__ = ["run"]
