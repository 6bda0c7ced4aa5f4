"""Lazy doors: a package ``__init__`` that names everything and imports nothing (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


class _MissingNameError(AttributeError):
    """A name that a door does not have.

    The nearest is looked for when the text is read: most of these errors are never shown, because
    ``from package import module`` and ``hasattr`` ask the door first.
    """

    def __str__(self) -> str:
        from .spelling import nearest

        package, name, known = self.args
        near = nearest(name, known)
        hint = "" if near is None else f". Did you mean {near!r}?"
        return f"module {package!r} has no attribute {name!r}{hint}"


def lazy_door(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for ``package`` that import a name when it is first used.

    ``names`` maps a public name to the module that defines it; a leading dot is relative to
    ``package``. A name that equals the last part of its module is the module itself.

    >>> __getattr__, __dir__ = lazy_door(__name__, {"Thing": ".thing"})
    """

    def __getattr__(name: str) -> Any:
        try:
            target = names[name]
        except KeyError:
            raise _MissingNameError(package, name, names) from None
        module = import_module(target, package)
        is_module = target.rpartition(".")[2] == name and not hasattr(module, name)
        value = module if is_module else getattr(module, name)
        # Stored, so that the next look-up is a plain attribute and this function is not called again.
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*names, *vars(sys.modules[package])})

    return __getattr__, __dir__
