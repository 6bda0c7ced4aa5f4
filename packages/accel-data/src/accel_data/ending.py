"""What happens where ranks run out of data at different steps."""

from __future__ import annotations

from accel_core.config.run import UNEVEN
from accel_core.errors import UnknownNameError


def check_policy(name: str | None) -> str | None:
    """Return ``name``; raise UnknownNameError when it is no policy."""
    if name is not None and name not in UNEVEN:
        raise UnknownNameError("policy for uneven data", str(name), UNEVEN)
    return name


__all__ = ["check_policy"]
