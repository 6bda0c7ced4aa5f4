"""Turn names and arguments into objects: the one place where that happens.

Nothing after this compares a name, a type or an enumeration: it calls methods of what was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accel_core import plugins
from accel_core.config import (
    AutocastKwargs,
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    GradScalerKwargs,
    InitProcessGroupKwargs,
    KwargsHandler,
    ProjectConfiguration,
)
from accel_core.enums import PrecisionType
from accel_core.environment import RunConfig
from accel_core.errors import CapabilityError, ConfigError, Fault
from accel_core.protocols import Precision, Strategy, StrategyContext

if TYPE_CHECKING:
    from accel_state.process import ProcessState

_HANDLERS: dict[type[KwargsHandler], str] = {
    AutocastKwargs: "autocast",
    DistributedDataParallelKwargs: "ddp",
    GradScalerKwargs: "scaler",
    InitProcessGroupKwargs: "init",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one ``Accelerator`` was asked to be, after arguments and environment were brought together."""

    mixed_precision: str
    accumulation: GradientAccumulationPlugin
    loader: DataLoaderConfiguration
    project: ProjectConfiguration
    handlers: Mapping[str, KwargsHandler]
    rng_types: tuple[str, ...]


def settings(
    *,
    mixed_precision: str | None,
    gradient_accumulation_steps: int,
    accumulation: GradientAccumulationPlugin | None,
    loader: DataLoaderConfiguration | None,
    split_batches: bool | None,
    project: ProjectConfiguration | None,
    project_dir: str | None,
    handlers: Sequence[KwargsHandler] | None,
    rng_types: Sequence[str] | None,
) -> Settings:
    """Bring arguments and environment together; what code says wins over what the environment says.

    Raises ConfigError where two arguments contradict each other.
    """
    run = RunConfig.from_environ()
    return Settings(
        mixed_precision=str(mixed_precision)
        if mixed_precision is not None
        else (run.mixed_precision or "no"),
        accumulation=_accumulation(gradient_accumulation_steps, accumulation, run),
        loader=_loader(loader, split_batches),
        project=_project(project, project_dir),
        handlers=_handlers(handlers or ()),
        rng_types=("generator",) if rng_types is None else tuple(str(kind) for kind in rng_types),
    )


def _accumulation(
    steps: int, plugin: GradientAccumulationPlugin | None, run: RunConfig
) -> GradientAccumulationPlugin:
    if plugin is None:
        # The documented default of the argument is 1, so 1 cannot be told from "not given".
        if steps == 1 and run.gradient_accumulation_steps:
            steps = run.gradient_accumulation_steps
        return GradientAccumulationPlugin(num_steps=steps)
    if steps not in {1, plugin.num_steps}:
        said = f"GradientAccumulationPlugin(num_steps={plugin.num_steps})"
        raise _contradiction("gradient_accumulation_steps", steps, said, "give the number in one of the two")
    return plugin


def _loader(config: DataLoaderConfiguration | None, split_batches: bool | None) -> DataLoaderConfiguration:
    if split_batches is None:
        return config or DataLoaderConfiguration()
    if config is None:
        return DataLoaderConfiguration(split_batches=split_batches)
    if config.split_batches != split_batches:
        said = f"DataLoaderConfiguration(split_batches={config.split_batches})"
        raise _contradiction("split_batches", split_batches, said, "set it in DataLoaderConfiguration only")
    return config


def _contradiction(field: str, value: object, said: str, fix: str) -> ConfigError:
    return ConfigError("Accelerator", [Fault(field, value, f"contradicts {said}", fix)])


def _project(config: ProjectConfiguration | None, project_dir: str | None) -> ProjectConfiguration:
    config = config or ProjectConfiguration(project_dir=project_dir)
    if project_dir is not None and config.project_dir is None:
        config.set_directories(project_dir)
    return config


def _handlers(given: Sequence[KwargsHandler]) -> dict[str, KwargsHandler]:
    found: dict[str, KwargsHandler] = {}
    faults = []
    for position, handler in enumerate(given):
        name = _HANDLERS.get(type(handler))
        field = f"kwargs_handlers[{position}]"
        if name is None:
            known = ", ".join(cls.__name__ for cls in _HANDLERS)
            faults.append(
                Fault(field, handler, "is not a handler that this version knows", f"known: {known}")
            )
        elif name in found:
            faults.append(
                Fault(field, handler, f"is the second {type(handler).__name__}", "keep one of them")
            )
        else:
            found[name] = handler
    if faults:
        raise ConfigError("Accelerator", faults)
    return found


def refuse_missing_features(**features: object) -> None:
    """Raise CapabilityError for features that were asked for and that this version does not have.

    An argument that is accepted and then ignored is worse than one that is refused.
    """
    asked = sorted(name for name, value in features.items() if value is not None)
    if asked:
        known = ", ".join(plugins.names(plugins.STRATEGIES))
        raise CapabilityError(
            f"This version of accel does not have what was asked for with {', '.join(asked)}",
            where="Accelerator(...)",
            fix=f"leave it out; the strategies here are: {known}",
        )


def precision(name: str, process: ProcessState) -> Precision:
    """Return the precision policy called ``name``, checked against the device.

    Raises UnknownNameError, or CapabilityError when nobody installed offers it or the device cannot.
    """
    if name in PrecisionType and str(name) not in plugins.offered(plugins.PRECISIONS):
        raise CapabilityError(
            f"No installed package offers the precision {name!r}",
            fix=f"use one of: {', '.join(plugins.names(plugins.PRECISIONS))}",
        )
    policy: Precision = plugins.find(plugins.PRECISIONS, str(name))(process.device)
    policy.check(process.hardware)
    return policy


def strategy(
    process: ProcessState, policy: Precision, handlers: Mapping[str, Any], name: str | None = None
) -> Strategy:
    """Return how the processes share models: as ``name`` says, else data-parallel when there are several.

    Raises UnknownNameError or NotInstalledError for a name that no installed package offers.
    """
    name = name or ("single" if process.topology.world_size == 1 else "ddp")
    context = StrategyContext(
        device=process.device,
        hardware=process.hardware,
        collectives=process.collectives,
        precision=policy,
        settings=handlers,
    )
    made: Strategy = plugins.find(plugins.STRATEGIES, name)(context)
    return made
