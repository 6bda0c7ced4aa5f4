"""What this version cannot do is refused by name, wherever it was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel_core.config.layers import Resolved
from accel_core.environment.run import RunConfig
from accel_core.errors import Fault

from .later_options import LATER

REASON = "is not available in this version of accel"
_DROP = "leave it out"

COMMANDS = ("config", "merge-weights", "test", "to-fsdp2", "tpu-config")
"""The documented sub-commands that later versions bring."""


def refused_options(given: Mapping[str, Any]) -> list[Fault]:
    """Return a fault for every given option that this version would have to ignore.

    The documented default asks for nothing, so it passes.
    """
    faults = []
    for group in LATER:
        for option in group.options:
            if option.turns or option.name not in given:
                continue
            value = given[option.name]
            if value == option.default:
                continue
            faults.append(Fault(f"--{option.name}", value, REASON, _DROP))
    return faults


def refused_features(run: RunConfig, resolved: Resolved) -> list[Fault]:
    """Return a fault for everything that the environment or the file asks for and this version lacks."""
    names = {item.field: item.name for item in RunConfig.variables()}
    return [
        Fault(names[field], value, f"{REASON}, said by {resolved.origin(field)}", "unset it")
        for field, value in run.features().items()
    ]


__all__ = ["COMMANDS", "REASON", "refused_features", "refused_options"]
