"""Documented methods of ``Accelerator`` that later versions bring, so that asking for one says so."""

from __future__ import annotations

METHODS = frozenset(
    {
        "deepspeed_ulysses_dl_adapter",
        "end_training",
        "get_tracker",
        "init_trackers",
        "log",
        "lomo_backward",
        "maybe_context_parallel",
    }
)


def missing(name: str) -> AttributeError:
    """Return the error for an attribute ``name`` that an ``Accelerator`` does not have."""
    text = f"'Accelerator' object has no attribute {name!r}"
    if name in METHODS:
        text = f"Accelerator.{name} is not in this version of accel"
    return AttributeError(text)


__all__ = ["METHODS", "missing"]
