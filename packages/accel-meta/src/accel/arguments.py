"""The arguments of ``Accelerator`` and the environment beside them, checked before anything is started."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from accel_core.config import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    KwargsHandler,
    ProjectConfiguration,
    TorchDynamoPlugin,
)
from accel_core.enums import RNGType
from accel_core.environment import PREFIXES, RunConfig
from accel_core.errors import CapabilityError, ConfigError, Fault, StateError, UnknownNameError
from accel_core.logging import get_logger

logger = get_logger(__name__)

_KINDS: Mapping[str, type[Any]] = {
    "dataloader_config": DataLoaderConfiguration,
    "project_config": ProjectConfiguration,
    "gradient_accumulation_plugin": GradientAccumulationPlugin,
    "dynamo_plugin": TorchDynamoPlugin,
}


def check(
    *,
    flags: Mapping[str, object],
    objects: Mapping[str, object],
    handlers: object,
    rng_types: object,
) -> None:
    """Raise ConfigError with every argument of the wrong kind, UnknownNameError for unknown generators."""
    faults = [*_flags(flags), *_objects(objects), *_handlers(handlers)]
    if faults:
        raise ConfigError("Accelerator", faults)
    known = RNGType.list()
    for kind in generators(rng_types):
        if kind not in known:
            raise UnknownNameError("rng_types entry", kind, known)


def _flags(flags: Mapping[str, object]) -> Iterator[Fault]:
    for name, value in flags.items():
        # "no" would be true.
        if isinstance(value, str):
            yield Fault(name, value, "must be True or False, not a text")


def _objects(objects: Mapping[str, object]) -> Iterator[Fault]:
    for name, value in objects.items():
        kind = _KINDS[name]
        if value is not None and not isinstance(value, kind):
            yield Fault(name, value, f"must be a {kind.__name__} or None", f"pass {kind.__name__}(...)")


def _handlers(handlers: object) -> Iterator[Fault]:
    if handlers is None:
        return
    if isinstance(handlers, (str, KwargsHandler)) or not isinstance(handlers, Iterable):
        yield Fault("kwargs_handlers", handlers, "must be a list of handlers", "put it in [ ]")
        return


def generators(given: Any) -> tuple[str, ...]:
    """Return the names of the random generators that ranks synchronise; the loaders' own when None."""
    if given is None:
        return ("generator",)
    return tuple(str(kind) for kind in ([given] if isinstance(given, str) else given))


def reduction_without_weight(reduction: str) -> StateError:
    """Return the error for a ``reduction`` that nothing uses."""
    return StateError(
        f"backward() was given reduction={reduction!r} without a weight",
        where="accelerator.backward(...)",
        fix="pass weight=, the number of samples or tokens in the loss; without it a loss is a mean anyway",
    )


def refuse(features: Iterable[str], where: str) -> None:
    """Raise CapabilityError for ``features`` that were asked for and that this version does not have.

    A wish that is accepted and then ignored is worse than one that is refused.
    """
    asked = ", ".join(sorted(features))
    if asked:
        raise CapabilityError(
            f"This version of accel does not have what was asked for with {asked}",
            where=where,
            fix="leave it out" if where != "environment" else "unset it, or launch without that option",
        )


def check_environment(run: RunConfig) -> None:
    """Raise CapabilityError for features that the environment asks for; tell of misspelt variables."""
    names = {item.field: item.name for item in RunConfig.variables()}
    refuse((names[field] for field in run.features()), "environment")
    ours = set(names.values())
    if any(name.startswith(PREFIXES) and name not in ours for name in os.environ):
        from accel_core.environment import unknown_variables

        for unknown in unknown_variables():
            if unknown.nearest is not None:
                logger.warning("%s", unknown)


__all__ = ["check", "check_environment", "generators", "reduction_without_weight", "refuse"]
