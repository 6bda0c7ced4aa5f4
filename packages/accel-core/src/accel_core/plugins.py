"""Find implementations by name through entry points, built-ins and third parties alike.

One group per role. A distribution offers an implementation by naming it in its metadata, for
example ``[project.entry-points."accel.devices"] cuda = "accel_state.devices.cuda:CudaDevice"``;
nothing in accel has to change for it to be found. Nothing is imported until a name is asked for.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import NotInstalledError, StateError, UnknownNameError

DEVICES = "accel.devices"
"""Factories of `accel_core.protocols.Device`."""
STRATEGIES = "accel.strategies"
"""Factories of `accel_core.protocols.Strategy`."""
PRECISIONS = "accel.precisions"
"""Factories of `accel_core.protocols.Precision`."""
TRACKERS = "accel.trackers"
"""Classes that implement `accel_core.protocols.Tracker`."""
CHECKPOINTS = "accel.checkpoints"
"""Factories of `accel_core.protocols.CheckpointIO`, called with the `Collectives` of the ranks that save."""
LAUNCHERS = "accel.launchers"
"""Factories of `accel_core.protocols.Launcher`."""
COMMANDS = "accel.commands"
"""Factories of `accel_core.protocols.Command`, the sub-commands of ``accel``."""
QUANTIZERS = "accel.quantizers"
"""Factories of `accel_core.protocols.Quantizer`, called with the settings that name them."""

_OFFERED_BY: dict[str, dict[str, str]] = {
    DEVICES: dict.fromkeys(
        ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "mlu", "musa", "sdaa", "neuron", "xla"), "accel-state"
    ),
    STRATEGIES: dict.fromkeys(("single", "ddp"), "accel-parallel"),
    PRECISIONS: dict.fromkeys(("no", "fp16", "bf16"), "accel-precision"),
    TRACKERS: {"jsonl": "accel-trackers"},
    CHECKPOINTS: dict.fromkeys(("local", "fsspec"), "accel-state"),
    QUANTIZERS: dict.fromkeys(("bitsandbytes", "torchao"), "accel-bigmodel"),
    LAUNCHERS: dict.fromkeys(("exec", "elastic"), "accel-cli"),
    COMMANDS: {
        "launch": "accel-cli",
        "env": "accel-cli",
        "checkpoint": "accel-state",
        "device-map": "accel-bigmodel",
        "estimate-memory": "accel-bigmodel",
    },
}
"""Which of our own distributions offers a name, so that a missing one can be told from an unknown one."""


@cache
def offered(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of ``group`` by name, without importing any.

    Raises StateError when two distributions offer the same name: neither may win silently.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = found.get(point.name)
        if other is not None and other.value != point.value:
            raise StateError(
                f"Two distributions offer the name {point.name!r} in {group!r}: "
                f"{_origin(other)} and {_origin(point)}",
                fix="uninstall one of them, or ask its author to take another name",
            )
        found[point.name] = point
    return found


def _origin(point: EntryPoint) -> str:
    dist = point.dist.name if point.dist is not None else "an unknown distribution"
    return f"{point.value} ({dist})"


def names(group: str) -> list[str]:
    """Return the names that installed distributions offer in ``group``, sorted."""
    return sorted(offered(group))


def find(group: str, name: str) -> Any:
    """Import and return what ``name`` stands for in ``group``.

    Raises UnknownNameError when nobody offers it (with the nearest name), NotInstalledError when
    one of our own distributions would (with the pip line).
    """
    kind = group.removeprefix("accel.").removesuffix("s")
    point = offered(group).get(name)
    if point is not None:
        return point.load()
    ours = _OFFERED_BY.get(group, {})
    if name in ours:
        raise NotInstalledError(kind, name, ours[name])
    raise UnknownNameError(kind, name, {*offered(group), *ours})


__all__ = [
    "CHECKPOINTS",
    "COMMANDS",
    "DEVICES",
    "LAUNCHERS",
    "PRECISIONS",
    "QUANTIZERS",
    "STRATEGIES",
    "TRACKERS",
    "find",
    "names",
    "offered",
]
