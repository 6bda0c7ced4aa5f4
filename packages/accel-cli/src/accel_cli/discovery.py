"""Find sub-commands quickly: read the metadata files of installed distributions, import nothing.

`importlib.metadata` needs a third of the start-up budget to import, for features that are not
wanted here. The files it reads are plain text (the entry points specification of the Python
Packaging Authority): this module reads the same ones. What it does not see, such as a distribution
inside a zip archive, is left to `accel_core.plugins`, which also words the errors.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

GROUP = "accel.commands"


class Offer(NamedTuple):
    """A name that a distribution offers, and the ``module:attribute`` it stands for."""

    name: str
    value: str
    distribution: str


def offers(group: str = GROUP) -> list[Offer]:
    """Return what installed distributions offer in ``group``, sorted by name, without importing any."""
    found = {
        (offer.name, offer.value): offer for folder in sys.path for offer in _offers_in(folder or ".", group)
    }
    return sorted(found.values())


def _offers_in(folder: str, group: str) -> Iterator[Offer]:
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        if name.endswith((".dist-info", ".egg-info")):
            try:
                with open(os.path.join(folder, name, "entry_points.txt"), encoding="utf-8") as file:
                    text = file.read()
            except OSError:
                continue
            if group in text:
                yield from _parse(text, group, name.partition("-")[0].replace("_", "-"))


def _parse(text: str, group: str, distribution: str) -> Iterator[Offer]:
    inside = False
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        if line.startswith("["):
            inside = line.strip("[] ") == group
        elif inside and "=" in line:
            name, _, value = line.partition("=")
            yield Offer(name.strip(), value.partition("[")[0].strip(), distribution)


def find(name: str, group: str = GROUP) -> Any:
    """Import and return what ``name`` stands for in ``group``.

    Raises what `accel_core.plugins.find` raises for an unknown name, one that is not installed, or
    one that two distributions offer.
    """
    candidates = [offer for offer in offers(group) if offer.name == name]
    if len(candidates) != 1:
        from accel_core import plugins

        return plugins.find(group, name)
    module, _, attribute = candidates[0].value.partition(":")
    found: Any = import_module(module)
    for part in attribute.split(".") if attribute else ():
        found = getattr(found, part)
    return found


_HELP = re.compile(r"^\s+help(?:\s*:\s*\w+)?\s*=\s*\(?\s*([\"'])(.*)\1", re.MULTILINE)


def one_line_help(offer: Offer) -> str:
    """Return the ``help`` line of a command as its source states it, without importing the module.

    A command whose module cannot be read, or whose ``help`` is not a literal, is described by the
    distribution that it comes from.
    """
    parts = offer.value.partition(":")[0].split(".")
    for folder in sys.path:
        path = os.path.join(folder or ".", *parts) + ".py"
        try:
            with open(path, encoding="utf-8") as file:
                match = _HELP.search(file.read())
        except OSError:
            continue
        if match:
            return match[2]
        break
    return f"from {offer.distribution}"


__all__ = ["Offer", "find", "offers", "one_line_help"]
