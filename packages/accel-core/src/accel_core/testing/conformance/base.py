"""What all suites share: no standard test disappears silently."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Any

GUARD = "test_no_standard_test_was_overridden"


class Conformance:
    """Base of the suites. A suite subclasses it directly; an implementer subclasses the suite."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if GUARD in vars(cls):
            raise TypeError(f"{cls.__qualname__} overrides {GUARD}: mark single tests with xfail(reason=...)")

    def test_no_standard_test_was_overridden(self) -> None:
        """Fail when a standard test is dropped, or overridden without xfail(reason=...)."""
        suite = standard_suite(type(self))
        changed = [name for name in standard_tests(suite) if not _kept(type(self), suite, name)]
        assert not changed, (
            f"{type(self).__qualname__} overrides or drops {', '.join(changed)} of {suite.__name__}: "
            "where one cannot hold, override it with @pytest.mark.xfail(reason=...) and call super()"
        )


def standard_suite(cls: type) -> type:
    """Return the suite that ``cls`` is of: the class directly under `Conformance` in its bases."""
    return next(
        base for base in reversed(cls.__mro__) if issubclass(base, Conformance) and base is not Conformance
    )


def standard_tests(suite: type) -> list[str]:
    """Return the names of the suite's tests."""
    return [name for name in dir(suite) if name.startswith("test_")]


def _kept(cls: type, suite: type, name: str) -> bool:
    own = getattr(cls, name, None)
    if own is getattr(suite, name):
        return True
    marks = getattr(own, "pytestmark", [])
    return any(mark.name == "xfail" and mark.kwargs.get("reason") for mark in marks)


def fresh_python(value: object, body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``body`` in a new interpreter where ``Class`` is the class of ``value``, which must be importable.

    For checks of what an import brings with it.
    """
    cls = type(value)
    return _run(cls.__module__, cls.__qualname__, body, arguments)


def _run(
    module: str, name: str, body: str, arguments: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    head = f"import sys\nsys.path[:] = {sys.path!r}\nfrom {module} import {name} as Class\n"
    return subprocess.run(
        [sys.executable, "-c", head + body, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def importable(value: object) -> bool:
    """Tell whether a new interpreter can import the class of ``value``."""
    cls = type(value)
    return cls.__qualname__.isidentifier() and _imports(cls.__module__, cls.__qualname__)


@cache
def _imports(module: str, name: str) -> bool:
    return _run(module, name, "").returncode == 0


__all__ = ["Conformance", "fresh_python", "importable", "standard_suite", "standard_tests"]
