"""Bytes as people write them for ``max_memory``, and as tables show them; without torch."""

from __future__ import annotations

import re

from accel_core.errors import ConfigError, Fault

_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([kmgt]?)(i?)([Bb])\s*", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_NAMES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def convert_file_size_to_int(size: float | str) -> int:
    """Return the bytes of a number of them, or of text like ``"10GiB"``, ``"30GIB"`` or ``"1.5GB"``.

    An ``i``, of either case, makes powers of 1024 out of powers of 1000. Without it, a small ``b`` at the
    end means bits. Raises ConfigError for anything else, and for less than nothing.
    """
    return memory_size(size, "size")


def memory_size(size: float | str, field: str) -> int:
    """Return bytes as `convert_file_size_to_int`; errors name ``field``."""
    if isinstance(size, float) and 0 <= size < 2**63:
        # A part of what there is, which others (transformers) work out.
        return int(size)
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is None:
        raise ConfigError(
            "memory",
            [Fault(field, size, "is no size in bytes", "write it like '10GiB', '10GB', '512MiB' or 4096")],
        )
    number, power, binary, unit = found.groups()
    # Whole numbers stay exact: a float has 53 bits.
    value = float(number) if "." in number else int(number)
    result = value * (1024 if binary else 1000) ** _POWERS[power.lower()]
    return int(result // 8 if unit == "b" and not binary else result)


def shown(size: float) -> str:
    """Return bytes with the unit that makes them readable: ``1.5 GiB``."""
    left, step = abs(float(size)), 0
    while left >= 1024 and step < len(_NAMES) - 1:
        left, step = left / 1024, step + 1
    if round(left, 1 if left < 100 else 0) >= 1024 and step < len(_NAMES) - 1:
        left, step = left / 1024, step + 1
    sign = "-" if size < 0 else ""
    return f"{sign}{left:.0f} B" if step == 0 else f"{sign}{left:.{1 if left < 100 else 0}f} {_NAMES[step]}"


__all__ = ["convert_file_size_to_int", "memory_size", "shown"]
