"""``accel checkpoint verify``."""

from __future__ import annotations

import json
from argparse import Namespace

from ..checkpoint.address import shown
from . import show
from .found import shelf_of


def run(arguments: Namespace) -> int:
    """Print what is wrong with each checkpoint; return 1 if anything is."""
    # All paths are looked up before the first is read, which may take long.
    shelves = [(shelf_of(path), path) for path in arguments.paths]
    wanted = {str(each.path): (shelf, each) for shelf, path in shelves for each in shelf.those(path)}
    results = []
    for shelf, each in wanted.values():
        found = shelf.look(each, arguments.verify)
        results.append(found)
        if arguments.json:
            continue
        name = show.plain(found.path)
        if found.manifest is not None and found.good:
            files = len(found.manifest.files)
            print(f"{name}: {found.checked} are as saved ({files} files, {show.size(found.size)})")
        else:
            print(f"{name}: DAMAGED")
            for fault in found.faults:
                print(f"    {show.plain(fault)}")
    if arguments.json:
        print(json.dumps([found.facts() for found in results], indent=2))
    elif not results:
        print(f"No checkpoints in {', '.join(show.plain(shown(path)) for path in arguments.paths)}")
    return int(any(not found.good for found in results))


__all__ = ["run"]
