"""Every variable of the contract, and the ones of an environment that look like it but are not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from accel_core.spelling import nearest

from .deepspeed import DeepSpeedConfig
from .fp8 import Fp8Config
from .fsdp import FsdpConfig
from .megatron import MegatronConfig
from .parallelism import ParallelismVariables
from .records import Record, Variable
from .run import RunConfig

FAMILIES: tuple[type[Record], ...] = (
    RunConfig,
    FsdpConfig,
    DeepSpeedConfig,
    MegatronConfig,
    ParallelismVariables,
    Fp8Config,
)
"""The families of variables that accel both reads and writes."""

PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
"""What the names of our variables begin with."""


def variables() -> tuple[Variable, ...]:
    """Return every variable of every family."""
    return tuple(item for family in FAMILIES for item in family.variables())


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """A variable with one of our prefixes that accel does not know; ``nearest`` may be meant."""

    name: str
    value: str
    nearest: str | None

    def __str__(self) -> str:
        if self.nearest is None:
            return f"environment variable {self.name} is not one that accel knows; it has no effect on accel"
        return (
            f"environment variable {self.name}={self.value!r} has no effect: accel does not know it. "
            f"Did you mean {self.nearest}?"
        )


def unknown_variables(environ: Mapping[str, str] | None = None) -> tuple[UnknownVariable, ...]:
    """Return the variables of ``environ`` that carry one of our prefixes and are not in the contract.

    It reports and never raises: other tools (and newer versions) put variables of their own under
    these prefixes, and they must not stop a run. One with a ``nearest`` is probably misspelt, and
    the edge of the program shows it; the others are for a diagnosis such as ``accel env``.
    """
    names = [item.name for item in variables()]
    known = set(names)
    found = []
    for name, value in sorted((os.environ if environ is None else environ).items()):
        if name.startswith(PREFIXES) and name not in known:
            # A strict measure: somebody else's variable must not be taken for a misspelt one of ours.
            found.append(UnknownVariable(name, value, nearest(name, names, cutoff=0.85)))
    return tuple(found)
