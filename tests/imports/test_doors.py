"""Every lazy door of every package gives programs, type checkers and readers the same names."""

from __future__ import annotations

import importlib
import inspect
from importlib.util import find_spec

import pytest

from workspace import dependents, packages, re_exported

NEED_TORCH = {
    package.import_name for package in packages() if package.dist in dependents({"torch"}, packages())
}
# Its checks compute with tensors; the rest of accel_core needs no torch.
DOORS_TO_TORCH = {"accel_core.testing.conformance"}
FILES = {
    ".".join((package.import_name, *path.parent.relative_to(package.source).parts)): path
    for package in packages()
    if find_spec(package.import_name)
    for path in sorted(package.source.rglob("__init__.py"))
    if "lazy_door(" in path.read_text(encoding="utf-8")
}


def test_every_package_opens_with_a_door() -> None:
    assert {package.import_name for package in packages() if find_spec(package.import_name)} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_programs_and_type_checkers_see_the_same_names(name: str) -> None:
    door = importlib.import_module(name)
    assert sorted(door.__all__) == sorted(re_exported(FILES[name]))
    assert door.__all__ == sorted(door.__all__), "in the order in which a reader looks them up"
    assert set(door.__all__) <= set(dir(door))


@pytest.mark.parametrize("name", FILES)
def test_every_name_is_the_thing_that_bears_it_and_is_documented(name: str) -> None:
    if name.partition(".")[0] in NEED_TORCH or name in DOORS_TO_TORCH:
        pytest.importorskip("torch")
    door = importlib.import_module(name)
    for public in door.__all__:
        thing = getattr(door, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__name__ == public
            assert thing.__doc__, f"{name}.{public} has no docstring"
        elif inspect.ismodule(thing):
            assert thing.__name__.rpartition(".")[2] == public


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_name_comes_with_the_nearest(name: str) -> None:
    door = importlib.import_module(name)
    longest = max(door.__all__, key=len)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute .* Did you mean '{longest}'"):
        getattr(door, f"{longest}s")
