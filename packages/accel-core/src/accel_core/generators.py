"""The states of Python's and NumPy's generators as bytes, and back: exact, and without pickle."""

from __future__ import annotations

import json
import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any


def pack_python(state: tuple[Any, ...]) -> bytes:
    """Return what ``random.getstate()`` gave as bytes."""
    version, words, gauss = state
    return json.dumps([version, _packed(array("I", words)), gauss]).encode()


def unpack_python(data: bytes) -> tuple[Any, ...]:
    """Return what ``random.setstate`` takes. Raises ValueError for bytes that are no such state."""
    try:
        version, words, gauss = json.loads(data)
        return version, tuple(_unpacked(words)), gauss
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("these bytes hold no state of Python's generator") from error


def pack_numpy(state: Mapping[str, Any]) -> bytes:
    """Return what ``numpy.random.get_state(legacy=False)`` gave as bytes, for any bit generator."""
    return json.dumps(_plain(state)).encode()


def unpack_numpy(data: bytes) -> dict[str, Any]:
    """Return what ``numpy.random.set_state`` takes. Raises ValueError for bytes that are no such state."""
    try:
        state = json.loads(data, object_hook=_array_back)
        if not isinstance(state["bit_generator"], str):
            raise TypeError
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("these bytes hold no state of NumPy's generator") from error
    return dict(state)


def _packed(words: array[int]) -> str:
    if sys.byteorder == "big":
        words.byteswap()
    return b64encode(words.tobytes()).decode()


def _unpacked(text: str, code: str = "I") -> array[int]:
    words = array(code, b64decode(text, validate=True))
    if sys.byteorder == "big":
        words.byteswap()
    return words


_CODES = {"uint32": "I", "uint64": "Q"}
"""The arrays that NumPy's bit generators hold."""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "dtype") and len(getattr(value, "shape", "")):
        kind = str(value.dtype)
        return {"array": kind, "data": _packed(array(_CODES[kind], value.tolist()))}
    return value.item() if hasattr(value, "item") else value


def _array_back(found: dict[str, Any]) -> Any:
    return _unpacked(found["data"], _CODES[found["array"]]) if found.keys() == {"array", "data"} else found


__all__ = ["pack_numpy", "pack_python", "unpack_numpy", "unpack_python"]
