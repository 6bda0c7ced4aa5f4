"""Sizes as people write them."""

from __future__ import annotations

import re

from .errors import ConfigError, Fault

_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([KkMGT]?)(i?)B\s*")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(size: int | str, field: str = "max_shard_size") -> int:
    """Return a number of bytes from one, or from text like ``"10GB"``, ``"200MB"`` or ``"1.5GiB"``.

    ``kB``, ``MB``, ``GB`` and ``TB`` are powers of 1000, with an ``i`` powers of 1024. Raises ConfigError,
    which names ``field``.
    """
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is not None:
        result = int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].upper()])
    elif isinstance(size, int) and not isinstance(size, bool):
        result = size
    else:
        raise ConfigError(
            "size", [Fault(field, size, "is no size", "write it like '10GB', '512MiB' or 4096")]
        )
    if result < 1:
        raise ConfigError("size", [Fault(field, size, "must be one byte at least")])
    return result


__all__ = ["parse_size"]
