from __future__ import annotations

import pytest

import api_diff
from workspace import packages

DOOR = """
from typing import TYPE_CHECKING
from .__about__ import __version__ as __version__
from .thing import _private
if TYPE_CHECKING:
    from json import dumps as dumps
    from . import limits as limits
    from .thing import Thing as Thing
    from .thing import run as run
"""
THING = """
import nowhere
def run(a, b: int = 1, /, c=None, *args: str, d, e: float = 0.5, **rest) -> list[int]: ...
def _private(): ...
def not_offered(): ...
class Base:
    def grow(self) -> None: ...
class Thing(Base):
    size: int
    def __init__(self, *, size: int): ...
    def _shrink(self): ...
"""
LIMITS = """
import os
__all__ = ["LARGE"]
LARGE: int = 3
SMALL = 1
"""


@pytest.fixture
def package(repository):
    found = packages(repository)[0]
    for name, text in (("__init__", DOOR), ("thing", THING), ("limits", LIMITS)):
        (found.source / f"{name}.py").write_text(text)
    return found


def test_what_the_door_offers_is_read_without_importing(package):
    name = package.import_name
    assert api_diff.public_api(package) == [
        f"{name}.Thing.__init__(self, *, size: int)",
        f"{name}.Thing.grow(self) -> None",
        f"{name}.Thing.size: int",
        f"{name}.dumps = json.dumps",
        f"{name}.limits.LARGE: int",
        f"{name}.run(a, b: int = 1, /, c = None, *args: str, d, e: float = 0.5, **rest) -> list[int]",
        f"class {name}.Thing(Base)",
        f"module {name}.limits",
    ]


def test_what_is_inherited_from_another_package_is_offered_too(repository):
    core, state = packages(repository)[0], packages(repository)[-1]
    assert core.dist in state.requires
    (core.source / "base.py").write_text("class Base:\n    def grow(self) -> None: ...\n")
    text = f"from {core.import_name}.base import Base\nclass Thing(Base):\n    size: int\n"
    (state.source / "thing.py").write_text(text)
    (state.source / "__init__.py").write_text("from .thing import Thing as Thing\n")
    assert f"{state.import_name}.Thing.grow(self) -> None" in api_diff.public_api(state)


def test_a_change_is_reported_until_it_is_written_down(repository, package, capsys):
    assert api_diff.main([], repository) == 1
    assert api_diff.main(["--write"], repository) == 0
    assert api_diff.main([], repository) == 0
    capsys.readouterr()
    (package.source / "thing.py").write_text(THING.replace("grow(self)", "grow(self, by: int)"))
    assert api_diff.main([], repository) == 1
    printed = capsys.readouterr().out
    assert f"-{package.import_name}.Thing.grow(self) -> None" in printed
    assert f"+{package.import_name}.Thing.grow(self, by: int) -> None" in printed
