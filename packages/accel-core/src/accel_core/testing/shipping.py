"""Send functions of test modules to workers that cannot import those modules."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_INSTALLED = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")} - {None}
)


def pack(function: Callable[..., Any], arguments: tuple[Any, ...], installed: frozenset[str]) -> bytes:
    """Return the call as bytes; code of test modules travels by value.

    ``installed`` names the top-level packages that workers certainly can import.
    """
    with _by_value(_homes((function, *arguments)), installed):
        return dumps((function, arguments))


def dumps(value: Any) -> bytes:
    """Return ``value`` as bytes; functions and classes that cannot be imported travel by value."""
    import cloudpickle  # type: ignore[import-untyped]

    data: bytes = cloudpickle.dumps(value)
    return data


def unpack(data: bytes) -> Any:
    """Return what ``pack`` or ``dumps`` was given."""
    import pickle

    # Both ends are processes of this session.
    return pickle.loads(data)  # noqa: S301


def _homes(values: Iterable[Any]) -> set[ModuleType]:
    """Return the modules that define these functions and objects, looking through partials."""
    found = set()
    for value in values:
        inner = value
        while hasattr(inner, "func"):
            inner = inner.func
        for name in (getattr(inner, "__module__", None), type(inner).__module__):
            module = sys.modules.get(name) if isinstance(name, str) else None
            if module is not None:
                found.add(module)
    return found


@contextlib.contextmanager
def _by_value(homes: Iterable[ModuleType], installed: frozenset[str]) -> Iterator[None]:
    """Pickle by value what these modules define, and the loaded helper modules that lie beside them."""
    import cloudpickle

    local = [module for module in homes if _is_local(module, installed)]
    folders = tuple(f"{Path(str(module.__file__)).parent}{os.sep}" for module in local)
    registered: list[ModuleType] = []
    for module in list(sys.modules.values()) if folders else ():
        # Modules may be odd objects that raise on access or have no file.
        file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if not isinstance(file, str) or not file.startswith(folders) or not _is_local(module, installed):
            continue
        if sys.modules.get(module.__name__) is module:
            cloudpickle.register_pickle_by_value(module)
            registered.append(module)
    try:
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def _is_local(module: ModuleType, installed: frozenset[str]) -> bool:
    """Tell whether workers cannot import the module: a test module, or a helper beside one."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or module.__name__ == "__main__":
        return False
    top = module.__name__.partition(".")[0]
    return top not in installed and not file.startswith(_INSTALLED) and not _importable(top)


@cache
def _importable(top: str) -> bool:
    """Tell whether a fresh interpreter finds this top-level package; pytest's own finder is not asked."""
    for finder in sys.meta_path:
        if type(finder).__module__.startswith("_pytest."):
            continue
        spec = finder.find_spec(top, None)
        if spec is not None:
            # A folder that happens to be called so is no package, and test files are not to be imported.
            return spec.origin is not None and not top.startswith(("test_", "conftest"))
    return False


__all__ = ["dumps", "pack", "unpack"]
