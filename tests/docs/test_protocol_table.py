"""The table of protocols in docs/design says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from accel_core import protocols

PAGE = Path(__file__).parents[2] / "docs" / "design" / "protocols.md"


def methods(name: str) -> int:
    """Return how many methods and properties the protocol ``name`` asks for, its attributes left out."""
    members = vars(getattr(protocols, name)).items()
    return sum(
        1
        for member, value in members
        if not member.startswith("_") and (callable(value) or isinstance(value, property))
    )


def test_the_table_counts_the_methods_of_every_protocol() -> None:
    stated = {}
    for names, counts in re.findall(
        r"^\| (`.+?) \| .+? \| ([\d, ()]+) \|$", PAGE.read_text("utf-8"), re.MULTILINE
    ):
        stated |= dict(zip(re.findall(r"`(\w+)`", names), map(int, re.findall(r"\d+", counts)), strict=True))
    kinds = {name for name in protocols.__all__ if getattr(getattr(protocols, name), "_is_protocol", False)}
    assert stated == {name: methods(name) for name in kinds}
    assert max(stated.values()) <= 8
