"""Whether models are compiled, and how: arguments first, then the environment, then torch's own defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accel_core.config import TorchDynamoPlugin
from accel_core.enums import DynamoBackend
from accel_core.environment import RunConfig
from accel_core.errors import CapabilityError, ConfigError, Fault
from accel_core.protocols import Strategy, Unit
from accel_parallel import has_compiled_regions, is_compiled_module

_FROM_ENVIRONMENT = {
    "mode": "dynamo_mode",
    "fullgraph": "dynamo_use_fullgraph",
    "dynamic": "dynamo_use_dynamic",
    "use_regional_compilation": "dynamo_use_regional_compilation",
}
"""The field of `RunConfig` that a setting is taken from when the plugin leaves it open."""


def compilation(backend: Any, plugin: TorchDynamoPlugin | None, run: RunConfig) -> TorchDynamoPlugin | None:
    """Return how models are to be compiled, None for not at all.

    A plugin asks for compilation, with torch's own backend unless a backend is named somewhere;
    ``"no"`` for a backend and ``disable`` ask for none.

    Raises ConfigError for two different backends, for one that nobody knows, and for settings in the
    environment that have no effect, because nothing asks for compilation.
    """
    if backend is not None:
        if plugin is not None and plugin.backend is not None:
            said = f"contradicts TorchDynamoPlugin(backend={str(plugin.backend)!r})"
            fix = "name the backend in one of the two"
            raise ConfigError("Accelerator", [Fault("dynamo_backend", backend, said, fix)])
        plugin = replace(plugin or TorchDynamoPlugin(), backend=backend)
    elif plugin is None:
        if run.dynamo_backend is None:
            _refuse_without_backend(run)
            return None
        plugin = TorchDynamoPlugin(backend=run.dynamo_backend)
    elif plugin.backend is None:
        plugin = replace(plugin, backend=run.dynamo_backend or DynamoBackend.INDUCTOR)
    if plugin.disable or plugin.backend == DynamoBackend.NO:
        return None
    open_fields = {
        name: getattr(run, field)
        for name, field in _FROM_ENVIRONMENT.items()
        if getattr(plugin, name) is None and getattr(run, field) is not None
    }
    return replace(plugin, **open_fields)


def _refuse_without_backend(run: RunConfig) -> None:
    names = {item.field: item.name for item in RunConfig.variables()}
    faults = [
        Fault(names[field], value, "has no effect: nothing asks to compile", f"set {names['dynamo_backend']}")
        for field in _FROM_ENVIRONMENT.values()
        if (value := getattr(run, field)) not in (None, False, "default")
    ]
    if faults:
        raise ConfigError("environment", faults)


def check_compiled(strategy: Strategy, unit: Unit) -> None:
    """Raise CapabilityError when ``strategy`` left a model uncompiled that was to be compiled."""
    model = strategy.unwrap(unit.model)
    if not (is_compiled_module(model) or has_compiled_regions(model)):
        raise CapabilityError(
            f"The strategy {strategy.name!r} does not compile models, but compilation was asked for",
            where=f"unit {unit.name!r}, {type(model).__name__}",
            fix="leave dynamo_backend, dynamo_plugin and ACCELERATE_DYNAMO_BACKEND out",
        )


__all__ = ["check_compiled", "compilation"]
