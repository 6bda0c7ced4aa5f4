"""The ``Accelerator``: the four lines in the user's loop. It delegates; the packages below do the work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, overload

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from accel_core.config import (
    AutocastKwargs,
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    KwargsHandler,
    ProjectConfiguration,
)
from accel_core.logging import get_logger
from accel_data import prepare_data_loader
from accel_parallel import AcceleratedOptimizer, AcceleratedScheduler
from accel_state import AcceleratorState, GradientState, operations, random
from accel_state.process import start as process_state

from . import arguments, metrics, resolve
from .accumulation import Accumulate
from .configuration_api import ConfigurationAPI
from .preparation import (
    Registry,
    check_ownership,
    form_units,
    optimizers_of,
    reject_foreign,
    reject_repeats,
    role_of,
    wrap_units,
)
from .process_api import ProcessAPI

if TYPE_CHECKING:
    from accel_core.protocols import Precision, Scaler, Strategy

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_NOT_GIVEN: Any = None

logger = get_logger(__name__)

_SCHEDULER_NOTE = (
    "The learning rate scheduler moves %s steps per optimizer step, one per process, as documented:"
    " its length is that of one process. To move one step per optimizer step, pass"
    " step_scheduler_with_optimizer=False and step it yourself, or split_batches=True."
)


class Accelerator(ProcessAPI, ConfigurationAPI):
    """Run one training loop on whatever processes and devices it was launched on.

    >>> accelerator = Accelerator()
    >>> model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    >>> for inputs, targets in loader:
    ...     loss = criterion(model(inputs), targets)
    ...     accelerator.backward(loss)
    ...     optimizer.step()
    ...     optimizer.zero_grad()

    ``strategy``, ours: how processes share models, by the name under which an installed package offers
    it; by default alone on one process, data-parallel on several.

    Raises ConfigError, UnknownNameError or CapabilityError for settings that are wrong, unknown or
    impossible here, and StateError when this process was set up differently before.
    """

    def __init__(
        self,
        device_placement: bool = True,
        split_batches: bool = _NOT_GIVEN,
        mixed_precision: str | None = None,
        gradient_accumulation_steps: int = 1,
        cpu: bool = False,
        dataloader_config: DataLoaderConfiguration | None = None,
        deepspeed_plugin: Any = None,
        fsdp_plugin: Any = None,
        torch_tp_plugin: Any = None,
        megatron_lm_plugin: Any = None,
        rng_types: Sequence[str] | None = None,
        log_with: Any = None,
        project_dir: str | None = None,
        project_config: ProjectConfiguration | None = None,
        gradient_accumulation_plugin: GradientAccumulationPlugin | None = None,
        step_scheduler_with_optimizer: bool = True,
        kwargs_handlers: Sequence[KwargsHandler] | None = None,
        dynamo_backend: str | None = None,
        dynamo_plugin: Any = None,
        deepspeed_plugins: Any = None,
        parallelism_config: Any = None,
        *,
        strategy: str | None = None,
    ) -> None:
        later = {
            "deepspeed_plugin": deepspeed_plugin,
            "deepspeed_plugins": deepspeed_plugins,
            "fsdp_plugin": fsdp_plugin,
            "torch_tp_plugin": torch_tp_plugin,
            "megatron_lm_plugin": megatron_lm_plugin,
            "dynamo_plugin": dynamo_plugin,
            "dynamo_backend": None if dynamo_backend in (None, "no", "NO") else dynamo_backend,
            "parallelism_config": parallelism_config,
            "log_with": log_with,
        }
        arguments.refuse((name for name, value in later.items() if value is not None), "Accelerator(...)")
        arguments.check(
            flags={
                "device_placement": device_placement,
                "cpu": cpu,
                "step_scheduler_with_optimizer": step_scheduler_with_optimizer,
            },
            objects={
                "dataloader_config": dataloader_config,
                "project_config": project_config,
                "gradient_accumulation_plugin": gradient_accumulation_plugin,
            },
            handlers=kwargs_handlers,
            rng_types=rng_types,
        )
        self._settings = resolve.settings(
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=gradient_accumulation_steps,
            accumulation=gradient_accumulation_plugin,
            loader=dataloader_config,
            split_batches=split_batches,
            project=project_config,
            project_dir=project_dir,
            handlers=kwargs_handlers,
            rng_types=rng_types,
        )
        self.device_placement = device_placement
        self.step_scheduler_with_optimizer = step_scheduler_with_optimizer
        self._start(cpu, strategy)
        self._registry = Registry()

    def _start(self, cpu: bool, strategy: str | None) -> None:
        """Join the processes, then build what the loop calls into. The order is the dependency."""
        settings = self._settings
        self.state = AcceleratorState(
            mixed_precision=settings.mixed_precision,
            cpu=cpu,
            _from_accelerator=True,
            **self._process_options(),
        )
        process = self._process = process_state()
        self._precision: Precision = resolve.precision(settings.mixed_precision, process, settings.handlers)
        self.scaler: Scaler | None = self._precision.scaler(**self._handler("scaler"))
        self._strategy: Strategy = resolve.strategy(process, self._precision, settings.handlers, strategy)
        self._collectives = process.collectives
        self.gradient_state = GradientState(settings.accumulation)
        self._window = self.gradient_state.window

    # -- prepare -----------------------------------------------------------------------------

    @overload
    def prepare(self, thing: T, /, *, device_placement: Sequence[bool] | None = None) -> T: ...

    # mypy 2 does not see that *args: Any takes *args: *Ts.
    @overload
    def prepare(self, *args: *Ts, device_placement: Sequence[bool] | None = None) -> tuple[*Ts]: ...

    def prepare(  # type: ignore[misc]
        self, *args: Any, device_placement: Sequence[bool] | None = None
    ) -> Any:
        """Return the objects ready for this set-up, in the order given.

        Models, optimizers, schedulers and loaders, any number in any order. Objects of other kinds come
        back as they are; one that was prepared before comes back as what it became then.
        ``device_placement`` overrides the accelerator's for each object.

        Raises PrepareError for an object given twice, an optimizer whose parameters no prepared model
        has, and a scheduler whose optimizer was not prepared.
        """
        reject_repeats(args)
        places = self._places(args, device_placement)
        made: dict[int, Any] = {}
        fresh: dict[str, list[tuple[int, Any]]] = {
            "model": [],
            "optimizer": [],
            "scheduler": [],
            "loader": [],
        }
        for position, thing in enumerate(args):
            known = self._registry.made_of(thing)
            role = role_of(thing)
            if known is not None or role is None:
                made[position] = thing if known is None else known
            else:
                reject_foreign(thing)
                fresh[role].append((position, thing))
        made.update(self._prepare_units(fresh["model"], fresh["optimizer"], places))
        for position, scheduler in fresh["scheduler"]:
            made[position] = self.prepare_scheduler(scheduler)
        for position, loader in fresh["loader"]:
            made[position] = self.prepare_data_loader(loader, device_placement=places[position])
        result = tuple(made[position] for position in range(len(args)))
        return result[0] if len(result) == 1 else result

    def _places(self, args: Sequence[Any], given: Sequence[bool] | None) -> list[bool]:
        if given is None:
            return [self.device_placement] * len(args)
        if len(given) != len(args):
            raise ValueError(f"device_placement has {len(given)} entries for {len(args)} objects")
        return [self.device_placement if place is None else bool(place) for place in given]

    def _prepare_units(
        self, models: list[tuple[int, Any]], optimizers: list[tuple[int, Any]], places: Sequence[bool]
    ) -> dict[int, Any]:
        made: dict[int, Any] = {}
        registry = self._registry
        known = registry.parameter_ids() | {id(p) for _, model in models for p in model.parameters()}
        if known:
            for _, optimizer in optimizers:
                check_ownership(optimizer, known)
        named = [
            (f"model_{len(registry.models) + offset}", model, places[position])
            for offset, (position, model) in enumerate(models)
        ]
        units = form_units(named, [optimizer for _, optimizer in optimizers], train=True)
        replaced: dict[int, Optimizer] = {}
        for (position, model), unit, wrapped in zip(
            models, units, wrap_units(self._strategy, units), strict=True
        ):
            made[position] = self._keep_model(model, wrapped)
            replaced.update({id(a): b for a, b in zip(unit.optimizers, wrapped.optimizers, strict=True)})
        for position, optimizer in optimizers:
            made[position] = self._keep_optimizer(
                optimizer, replaced.get(id(optimizer), optimizer), places[position]
            )
        return made

    def _keep_model(self, model: nn.Module, wrapped: Any) -> nn.Module:
        self._registry.units.append(wrapped)
        self._registry.models.append(wrapped.model)
        self._registry.remember(model, wrapped.model)
        prepared: nn.Module = wrapped.model
        return prepared

    def _keep_optimizer(self, original: Optimizer, inner: Optimizer, place: bool) -> AcceleratedOptimizer:
        prepared = AcceleratedOptimizer(
            inner, device_placement=place, scaler=self.scaler, window=self._window
        )
        self._registry.optimizers.append(prepared)
        self._registry.remember(original, prepared)
        return prepared

    def prepare_model(
        self, model: nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> nn.Module:
        """Return ``model`` placed, converted to the precision and shared by the processes.

        With ``evaluation_mode`` gradients are not synchronised, so no container is needed.
        """
        known = self._registry.made_of(model)
        if isinstance(known, nn.Module):
            return known
        place = self.device_placement if device_placement is None else device_placement
        units = form_units(
            [(f"model_{len(self._registry.models)}", model, place)], [], train=not evaluation_mode
        )
        return self._keep_model(model, wrap_units(self._strategy, units)[0])

    def prepare_optimizer(
        self, optimizer: Optimizer, device_placement: bool | None = None
    ) -> AcceleratedOptimizer:
        """Return ``optimizer`` wrapped so that it steps at the end of a window only, through the scaler."""
        known = self._registry.made_of(optimizer)
        if isinstance(known, AcceleratedOptimizer):
            return known
        reject_foreign(optimizer)
        owners = self._registry.parameter_ids()
        if owners:
            check_ownership(optimizer, owners)
        place = self.device_placement if device_placement is None else device_placement
        return self._keep_optimizer(optimizer, optimizer, place)

    def prepare_scheduler(self, scheduler: Any) -> AcceleratedScheduler:
        """Return ``scheduler`` wrapped so that it steps when its optimizer did, once per process.

        Raises PrepareError when its optimizer was not prepared.
        """
        registry = self._registry
        known = registry.made_of(scheduler)
        if isinstance(known, AcceleratedScheduler):
            return known
        reject_foreign(scheduler)
        split = self._settings.loader.split_batches
        prepared = AcceleratedScheduler(
            scheduler,
            optimizers_of(scheduler, registry.made_of, registry.optimizers),
            step_with_optimizer=self.step_scheduler_with_optimizer,
            split_batches=split,
            window=self._window,
            num_processes=self.num_processes,
        )
        if (
            self.num_processes > 1
            and self.step_scheduler_with_optimizer
            and not split
            and not registry.schedulers
        ):
            logger.warning(_SCHEDULER_NOTE, self.num_processes)
        registry.schedulers.append(prepared)
        registry.remember(scheduler, prepared)
        return prepared

    def prepare_data_loader(
        self,
        data_loader: DataLoader[Any],
        device_placement: bool | None = None,
        slice_fn_for_dispatch: Any = None,
    ) -> DataLoader[Any]:
        """Return ``data_loader`` giving this rank its own share of the data, on its device."""
        known = self._registry.made_of(data_loader)
        if isinstance(known, DataLoader):
            return known
        config = self._settings.loader
        batches = self._strategy.batches
        prepared = prepare_data_loader(
            data_loader,
            self.device,
            num_processes=batches.world_size,
            process_index=batches.rank,
            split_batches=config.split_batches,
            put_on_device=self.device_placement if device_placement is None else device_placement,
            rng_types=list(self._settings.rng_types),
            dispatch_batches=config.dispatch_batches,
            even_batches=config.even_batches,
            slice_fn_for_dispatch=slice_fn_for_dispatch,
            use_seedable_sampler=config.use_seedable_sampler,
            data_seed=config.data_seed,
            non_blocking=config.non_blocking,
            use_stateful_dataloader=config.use_stateful_dataloader,
            collectives=batches,
            window=self._window,
            synchronize=random.synchronize_rng_states,
        )
        self._registry.loaders.append(prepared)
        self._registry.remember(data_loader, prepared)
        return prepared

    # -- the step ----------------------------------------------------------------------------

    def accumulate(self, *models: nn.Module) -> AbstractContextManager[None]:
        """Return the context of one micro-batch; gradients are synchronised when it closes its window.

        Without ``models`` it holds for all prepared ones. One forward and backward per model belongs in it.
        It counts once it is entered, also when it raises. Raises StateError inside another one, and for
        other models than those that the open window began with: one window counts for all of them.
        """
        return Accumulate(self._window, self._strategy, models or self._registry.models)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which ``model`` computes gradients without synchronising them between ranks."""
        return self._strategy.no_sync(model)

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Compute gradients of a mean ``loss``; over a window they add up to the mean over its micro-batches.

        A window cut short by the end of the data is the mean over the micro-batches that it has.
        """
        window = self._window
        window.filled = True
        if window.divisor != 1:
            loss = loss / window.divisor
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        self._strategy.backward(loss, sync=window.sync_gradients, **kwargs)
        if window.correction != 1.0:
            self._strategy.gradients.scale_(self._registry.parameters(), window.correction)
            window.corrected()

    def unscale_gradients(self, optimizer: Optimizer | Sequence[Optimizer] | None = None) -> None:
        """Divide gradients by the loss scale, once per step, for all or the given prepared optimizers.

        Within an open window nothing is divided: scaled gradients are still to be added.
        """
        if self.scaler is None:
            return
        chosen: Iterable[Any] = self._registry.optimizers if optimizer is None else optimizer  # type: ignore[assignment]
        for each in [chosen] if isinstance(chosen, Optimizer) else chosen:
            prepared = self._registry.made_of(each)
            if isinstance(prepared, AcceleratedOptimizer):
                prepared.unscale_()

    def clip_grad_norm_(
        self, parameters: torch.Tensor | Iterable[torch.Tensor], max_norm: float, norm_type: float = 2
    ) -> torch.Tensor:
        """Clip the total norm of the gradients in place; return the norm before clipping.

        Within an open window nothing is clipped, since gradients are partial; the norm so far is returned.
        """
        chosen = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        if not self._window.sync_gradients:
            return self._strategy.gradients.clip_norm_(chosen, float("inf"), norm_type)
        if self.scaler is not None:
            self.unscale_gradients(self._optimizers_over(chosen))
        return self._strategy.gradients.clip_norm_(chosen, max_norm, norm_type)

    def clip_grad_value_(self, parameters: torch.Tensor | Iterable[torch.Tensor], clip_value: float) -> None:
        """Clamp every gradient element into ``[-clip_value, clip_value]``; not within an open window."""
        if not self._window.sync_gradients:
            return
        chosen = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        self.unscale_gradients(self._optimizers_over(chosen))
        self._strategy.gradients.clip_value_(chosen, clip_value)

    def _optimizers_over(self, parameters: Sequence[torch.Tensor]) -> list[AcceleratedOptimizer]:
        if self.scaler is None:
            return []
        wanted = {id(parameter) for parameter in parameters}
        return [
            optimizer
            for optimizer in self._registry.optimizers
            if any(
                id(parameter) in wanted for group in optimizer.param_groups for parameter in group["params"]
            )
        ]

    def autocast(self, autocast_handler: AutocastKwargs | None = None) -> AbstractContextManager[None]:
        """Return the context in which operations outside the model compute in the mixed precision."""
        handler = autocast_handler or self._settings.handlers.get("autocast")
        if not isinstance(handler, AutocastKwargs):
            return self._precision.autocast()
        return self._precision.autocast(enabled=handler.enabled, cache_enabled=handler.cache_enabled)

    # -- between the ranks -------------------------------------------------------------------

    def gather(self, tensor: T) -> T:
        """Return the nested tensors of all ranks, concatenated along dimension 0 by rank. Collective."""
        gathered: T = operations.gather(tensor)
        return gathered

    def gather_for_metrics(self, input_data: Any, use_gather_object: bool = False) -> Any:
        """Gather values of the batch in hand and remove those of samples that were only padding. Collective.

        Tensors have one row, or a fixed number of rows, per sample. Anything else is gathered as
        objects: a list with one item per sample. Raises DataError when padding cannot be told apart.
        """
        cursor = self._window.active
        if use_gather_object or not metrics.all_tensors(input_data):
            return metrics.trim_objects(operations.gather_object(input_data), cursor)
        return metrics.trim(operations.gather(input_data), cursor)

    def reduce(self, tensor: T, reduction: str = "sum", scale: float = 1.0) -> T:
        """Return the nested tensors reduced by ``sum``, ``mean`` or ``none``, then scaled. Collective."""
        reduced: T = operations.reduce(tensor, reduction=reduction, scale=scale)
        return reduced

    def pad_across_processes(self, tensor: T, dim: int = 0, pad_index: int = 0, pad_first: bool = False) -> T:
        """Return the nested tensors padded along ``dim`` to the largest size of any rank. Collective."""
        padded: T = operations.pad_across_processes(tensor, dim=dim, pad_index=pad_index, pad_first=pad_first)
        return padded

    # -- the rest ----------------------------------------------------------------------------

    def unwrap_model(
        self, model: nn.Module, keep_fp32_wrapper: bool = True, keep_torch_compile: bool = True
    ) -> nn.Module:
        """Return the model that was given to ``prepare``.

        ``keep_fp32_wrapper`` keeps its forward in mixed precision; without it the original forward is
        restored. ``keep_torch_compile`` keeps a compiled module as it is.
        """
        inner = getattr(model, "_orig_mod", None)
        if isinstance(inner, nn.Module) and not keep_torch_compile:
            model = inner
        model = self._strategy.unwrap(model)
        return model if keep_fp32_wrapper else self._precision.restore(model)

    def free_memory(self, *objects: Any) -> list[Any]:
        """Forget everything prepared, give cached memory back, and return one None per object given.

        A window that is open is given up.

        >>> model, optimizer = accelerator.free_memory(model, optimizer)
        """
        released = [None] * len(objects)
        del objects
        self._registry.clear()
        self._window.restart()
        self._process.hardware.memory.empty_cache()
        return released

    def clear(self, *objects: Any) -> list[Any]:
        """Do what `free_memory` does, under its other documented name."""
        return self.free_memory(*objects)

    def __repr__(self) -> str:
        return (
            f"Accelerator(rank {self.process_index} of {self.num_processes}, device={self.device},"
            f" strategy={self._strategy.name}, mixed_precision={self.mixed_precision},"
            f" gradient_accumulation_steps={self.gradient_accumulation_steps})"
        )
