"""Turn names and arguments into objects: the one place where that happens.

Nothing after this compares a name, a type or an enumeration: it calls methods of what was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
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
    PreemptionKwargs,
    ProfileKwargs,
    ProjectConfiguration,
    TorchDynamoPlugin,
)
from accel_core.enums import PrecisionType
from accel_core.environment import RunConfig
from accel_core.errors import CapabilityError, ConfigError, Fault
from accel_core.protocols import Precision, Strategy, StrategyContext
from accel_state.accelerator_state import chosen_precision

from . import arguments
from .compilation import compilation

if TYPE_CHECKING:
    from accel_state.process import ProcessState

_HANDLERS: dict[type[KwargsHandler], str] = {
    AutocastKwargs: "autocast",
    DistributedDataParallelKwargs: "ddp",
    GradScalerKwargs: "scaler",
    InitProcessGroupKwargs: "init",
    PreemptionKwargs: "preemption",
    ProfileKwargs: "profile",
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
    dynamo_backend: str | None,
    dynamo_plugin: TorchDynamoPlugin | None,
    flags: Mapping[str, bool],
) -> Settings:
    """Bring arguments and environment together; what code says wins over what the environment says.

    ``flags`` are arguments that are used as they are, and are checked with the others.

    Raises ConfigError for arguments of the wrong kind and for two that contradict each other,
    CapabilityError for what the environment asks for and this version does not have.
    """
    objects = {
        "dataloader_config": loader,
        "project_config": project,
        "gradient_accumulation_plugin": accumulation,
        "dynamo_plugin": dynamo_plugin,
    }
    arguments.check(flags=flags, objects=objects, handlers=handlers, rng_types=rng_types)
    run = RunConfig.from_environ()
    arguments.check_environment(run)
    chosen = _handlers(handlers or ())
    dynamo = compilation(dynamo_backend, dynamo_plugin, run)
    if dynamo is not None:
        chosen["dynamo"] = dynamo
    return Settings(
        mixed_precision=str(mixed_precision).strip().lower()
        if mixed_precision is not None
        # A second Accelerator that does not say otherwise is as the first: the state is shared.
        else (chosen_precision() or run.mixed_precision or "no"),
        accumulation=_accumulation(gradient_accumulation_steps, accumulation, run),
        loader=_loader(loader, split_batches),
        project=_project(project, project_dir),
        handlers=chosen,
        rng_types=arguments.generators(rng_types),
    )


def _accumulation(
    steps: int, plugin: GradientAccumulationPlugin | None, run: RunConfig
) -> GradientAccumulationPlugin:
    if plugin is None or plugin.num_steps is None:
        # The documented default of the argument is 1, so 1 cannot be told from "not given".
        if steps in {1, None} and run.gradient_accumulation_steps:
            steps = run.gradient_accumulation_steps
        return replace(plugin or GradientAccumulationPlugin(), num_steps=steps)
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
    if project_dir is not None and config.project_dir != project_dir:
        said = f"ProjectConfiguration(project_dir={config.project_dir!r})"
        raise _contradiction("project_dir", project_dir, said, "set it in ProjectConfiguration only")
    return config


def _handlers(given: Sequence[KwargsHandler]) -> dict[str, KwargsHandler]:
    found: dict[str, KwargsHandler] = {}
    faults = []
    for position, handler in enumerate(given):
        # The documented class, or what a user made of it.
        name = next((_HANDLERS[cls] for cls in type(handler).__mro__ if cls in _HANDLERS), None)
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


def precision(name: str, process: ProcessState, handlers: Mapping[str, KwargsHandler]) -> Precision:
    """Return the precision policy called ``name``, checked against the device.

    Raises UnknownNameError, or CapabilityError when nobody installed offers it, the device cannot, or
    the policy does not let itself be changed by AutocastKwargs.
    """
    if name in PrecisionType and str(name) not in plugins.offered(plugins.PRECISIONS):
        raise CapabilityError(
            f"No installed package offers the precision {name!r}",
            fix=f"use one of: {', '.join(plugins.names(plugins.PRECISIONS))}",
        )
    factory = plugins.find(plugins.PRECISIONS, str(name))
    autocast = handlers.get("autocast")
    options = {} if autocast is None else autocast.to_kwargs()
    if options and not set(options) <= set(signature(factory).parameters):
        raise CapabilityError(
            f"The precision {name!r} cannot be changed by AutocastKwargs",
            where=f"AutocastKwargs with {', '.join(sorted(options))}",
            fix="leave AutocastKwargs out",
        )
    policy: Precision = factory(process.device, **options)
    policy.check(process.hardware)
    return policy


def strategy(
    process: ProcessState, policy: Precision, handlers: Mapping[str, Any], name: str | None = None
) -> Strategy:
    """Return how the processes share models: as ``name`` says, else data-parallel when there are several.

    Raises UnknownNameError or NotInstalledError for a name that no installed package offers, and
    NotInstalledError or CapabilityError when models are to be compiled by what is not there.
    """
    if "dynamo" in handlers:
        from accel_parallel.backends import check_backend

        check_backend(handlers["dynamo"], process.device)
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
