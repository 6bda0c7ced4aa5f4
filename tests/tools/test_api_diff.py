from __future__ import annotations

import pytest

import api_diff
from workspace import packages

SOURCE = """
from json import dumps
from .hidden import shown
__all__ = ["LIMIT", "Thing", "run", "shown"]
LIMIT: int = 3
def run(a, b: int = 1, /, c=None, *args: str, d, e: float = 0.5, **rest) -> list[int]: ...
def _private(): ...
class Thing(dict):
    size: int
    def __init__(self, *, size: int): ...
    def grow(self) -> None: ...
    def _shrink(self): ...
"""


@pytest.fixture
def package(repository):
    found = packages(repository)[0]
    (found.source / "thing.py").write_text(SOURCE)
    (found.source / "hidden.py").write_text("import nowhere\ndef shown(x): ...\n_secret = 1\n")
    return found


def test_public_names_and_signatures_are_read_without_importing(package):
    name = f"{package.import_name}.thing"
    lines = [line for line in api_diff.public_api(package) if ".thing" in line]
    assert lines == [
        f"{name}.LIMIT: int",
        f"{name}.Thing.__init__(self, *, size: int)",
        f"{name}.Thing.grow(self) -> None",
        f"{name}.Thing.size: int",
        f"{name}.run(a, b: int = 1, /, c = None, *args: str, d, e: float = 0.5, **rest) -> list[int]",
        f"{name}.shown = {package.import_name}.hidden.shown",
        f"class {name}.Thing(dict)",
        f"module {name}",
    ]


def test_a_change_is_reported_until_it_is_written_down(repository, package, capsys):
    assert api_diff.main([], repository) == 1
    assert api_diff.main(["--write"], repository) == 0
    assert api_diff.main([], repository) == 0
    capsys.readouterr()
    (package.source / "thing.py").write_text(SOURCE.replace("grow(self)", "grow(self, by: int)"))
    assert api_diff.main([], repository) == 1
    printed = capsys.readouterr().out
    assert f"-{package.import_name}.thing.Thing.grow(self) -> None" in printed
    assert f"+{package.import_name}.thing.Thing.grow(self, by: int) -> None" in printed
