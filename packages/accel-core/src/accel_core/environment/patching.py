"""Change environment variables for the length of a ``with`` block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accel_core.errors import ConfigError, Fault


@contextmanager
def clear_environment() -> Iterator[None]:
    """Empty the environment within the block; afterwards it is what it was, whatever the block set."""
    kept = dict(os.environ)
    os.environ.clear()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextmanager
def patch_environment(**kwargs: Any) -> Iterator[None]:
    """Set environment variables within the block; afterwards those have their old values, or are gone again.

    Names are written in capitals, values as text. Raises ConfigError for None and for text that no
    variable can hold.

    >>> with patch_environment(accelerate_debug_mode=1):
    ...     PartialState()
    """
    wanted = {name.upper(): str(value) for name, value in kwargs.items()}
    faults = [
        Fault(name, value, "cannot be the value of an environment variable", "leave it out")
        for name, value in kwargs.items()
        if value is None or "\0" in str(value)
    ]
    if faults:
        raise ConfigError("patch_environment", faults)
    kept = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


__all__ = ["clear_environment", "patch_environment"]
