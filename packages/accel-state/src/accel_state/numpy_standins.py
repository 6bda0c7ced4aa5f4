"""NumPy's arrays in pickles, read without NumPy's own functions for that.

Those trust what they are given: a dtype whose flags lie makes bytes of a file into addresses of
objects. Here a pickle only says the type of plain numbers, a shape and bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import serialization

from accel_core.errors import CheckpointError

_CODES = {f"{kind}{width}" for kind in "iu" for width in (1, 2, 4, 8)} | {"f2", "f4", "f8", "c8", "c16", "b1"}
_ORDERS = {"<", "|", "=", ">"}


class Dtype:
    """The type of plain numbers."""

    def __init__(self, code: Any = None, align: Any = False, copy: Any = True) -> None:
        self.code = code if isinstance(code, str) and code in _CODES else None
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        if self.code is not None and isinstance(state, tuple) and len(state) > 1 and state[1] in _ORDERS:
            self.order = state[1]
        else:
            self.code = None


class Array:
    """An array as its parts."""

    def __init__(self, *ignored: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Scalar:
    """One number."""

    def __init__(self, dtype: Any = None, data: Any = None) -> None:
        self.dtype, self.data = dtype, data


def _reconstruct(*_ignored: Any) -> Array:
    return Array()


def _no_bytes() -> bytes:
    # How pickles of the protocol that torch uses write an empty array's data: as a call without arguments.
    return b""


_GLOBALS: dict[str, Callable[..., Any]] = {
    **{f"{builtins}.bytes": _no_bytes for builtins in ("builtins", "__builtin__")},
    "numpy.dtype": Dtype,
    "numpy.ndarray": Array,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": Scalar for core in ("core", "_core")},
}


@contextmanager
def understood() -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` read arrays as stand-ins within the block."""
    given = serialization.get_safe_globals()
    # What the program allowed by itself stays allowed, but not to take the place of these.
    others = [each for each in given if _name(each) not in _GLOBALS]
    serialization.clear_safe_globals()
    try:
        pairs: list[Any] = [(function, name) for name, function in _GLOBALS.items()]
        serialization.add_safe_globals([*others, *pairs])
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(given)


def _name(allowed: Any) -> str:
    if isinstance(allowed, tuple):
        return str(allowed[1])
    return f"{getattr(allowed, '__module__', '')}.{getattr(allowed, '__qualname__', '')}"


def replaced(value: Any) -> Any:
    """Return nested plain containers with NumPy's arrays and numbers in place of the stand-ins.

    Raises CheckpointError for what is no array of plain numbers, and for what contains itself.
    """
    try:
        return _replaced(value, {})
    except (TypeError, RecursionError) as error:
        raise _refused(f"containers that cannot be ({type(error).__name__})") from error


def _replaced(value: Any, seen: dict[int, Any]) -> Any:
    # Once for each object: a few short lines of a pickle can hold lists that stand in lists a million times.
    if id(value) not in seen:
        seen[id(value)] = seen  # until the result is known
        seen[id(value)] = _fresh(value, seen)
    elif seen[id(value)] is seen:
        raise _refused("a container that contains itself")
    return seen[id(value)]


def _fresh(value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, Array):
        return _array(value.state)
    if isinstance(value, Scalar):
        return _numbers(value.dtype, value.data, ())[()]
    if isinstance(value, (Dtype, type)) or any(value is each for each in _GLOBALS.values()):
        raise _refused("what makes arrays, and no array")
    if isinstance(value, dict):
        pairs = {_replaced(key, seen): _replaced(each, seen) for key, each in value.items()}
        return pairs if type(value) is dict else type(value)(pairs)
    if type(value) in {list, tuple, set}:
        return type(value)(_replaced(each, seen) for each in value)
    return value


def _array(state: Any) -> Any:
    if not (isinstance(state, tuple) and len(state) == 5):
        raise _refused("an array without its parts")
    _, shape, dtype, fortran, data = state
    if not (isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)):
        raise _refused("an array of an impossible shape")
    found = _numbers(dtype, data, shape[::-1] if fortran else shape)
    return found.T if fortran else found


def _numbers(dtype: Any, data: Any, shape: tuple[int, ...]) -> Any:
    try:
        import numpy as np
    except ImportError as error:
        raise _refused("arrays of NumPy, which is not installed") from error
    if not (isinstance(dtype, Dtype) and dtype.code is not None and isinstance(data, bytes)):
        raise _refused("an array of something else than plain numbers")
    kind = np.dtype(f"{'<' if dtype.order == '=' else dtype.order}{dtype.code}")
    if math.prod(shape) * kind.itemsize != len(data):
        raise _refused("an array whose shape does not fit its bytes")
    # A copy, because bytes cannot be written to.
    return np.frombuffer(data, dtype=kind).reshape(shape).copy()


def _refused(what: str) -> CheckpointError:
    return CheckpointError(f"It holds {what}")


__all__ = ["replaced", "understood"]
