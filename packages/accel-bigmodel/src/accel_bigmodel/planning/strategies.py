"""How a model is spread over devices that could hold it in several ways; without torch."""

from __future__ import annotations

from collections.abc import Mapping

from accel_core.errors import UnknownNameError

from .balance import balanced
from .outline import Outline
from .solving import runners_of

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")


def check_strategy(name: str) -> None:
    """Raise UnknownNameError for what is no strategy."""
    if name not in STRATEGIES:
        raise UnknownNameError("strategy for a device map", name, STRATEGIES)


def spread(
    outline: Outline, limits: Mapping[int | str, int], strategy: str, *, workspace: int = 0
) -> dict[int | str, int]:
    """Return ``limits``, lowered on accelerators that shall not be filled as far as they can be."""
    runners = runners_of(limits)
    if strategy == "sequential" or len(runners) < 2:
        return dict(limits)
    columns = outline.columns(outline.groups(), offload_buffers=False)
    rooms = [limits[key] - workspace for key in runners]
    found = balanced(columns, rooms, low_first=strategy == "balanced_low_0")
    return {**limits, **{key: room + workspace for key, room in zip(runners, found, strict=True)}}


__all__ = ["STRATEGIES", "check_strategy", "spread"]
