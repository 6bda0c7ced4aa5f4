"""Send functions of test modules to workers that cannot import those modules."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
from collections.abc import Callable, Iterator
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
    with _by_value(_home(function), installed):
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


def _home(function: Any) -> ModuleType | None:
    """Return the module that defines ``function``, looking through partials and bound methods."""
    while hasattr(function, "func"):
        function = function.func
    name = getattr(function, "__module__", None) or type(function).__module__
    return sys.modules.get(name)


@contextlib.contextmanager
def _by_value(module: ModuleType | None, installed: frozenset[str]) -> Iterator[None]:
    """Pickle by value what ``module`` defines, and the loaded helper modules that lie beside it."""
    import cloudpickle

    registered: list[ModuleType] = []
    if module is not None and _is_local(module, installed):
        folder = Path(str(module.__file__)).parent
        for other in list(sys.modules.values()):
            # Modules may be odd objects that raise on access or have no file.
            file = vars(other).get("__file__") if isinstance(other, ModuleType) else None
            near = other is module or (
                isinstance(file, str) and file.startswith(f"{folder}/") and _is_local(other, installed)
            )
            if near and other.__name__ in sys.modules:
                cloudpickle.register_pickle_by_value(other)
                registered.append(other)
    try:
        yield
    finally:
        for other in registered:
            cloudpickle.unregister_pickle_by_value(other)


def _is_local(module: ModuleType, installed: frozenset[str]) -> bool:
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or module.__name__ == "__main__":
        return False
    return module.__name__.partition(".")[0] not in installed and not file.startswith(_INSTALLED)


__all__ = ["dumps", "pack", "unpack"]
