"""The part of ``Accelerator`` that makes objects ready: models, optimizers, schedulers and loaders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, overload

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from accel_core.logging import get_logger
from accel_data import prepare_data_loader
from accel_parallel import AcceleratedOptimizer, AcceleratedScheduler
from accel_state import random

from .compilation import check_compiled
from .configuration_api import ConfigurationAPI
from .preparation import (
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
    from accel_core.protocols import Scaler, Strategy

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

logger = get_logger(__name__)

_SCHEDULER_NOTE = (
    "The learning rate scheduler moves %s steps per optimizer step, one per process, as documented:"
    " its length is that of one process. To move one step per optimizer step, pass"
    " step_scheduler_with_optimizer=False and step it yourself, or split_batches=True."
)


class PrepareAPI(ProcessAPI, ConfigurationAPI):
    """Sort, wrap and remember what is given to ``prepare``."""

    device_placement: bool
    step_scheduler_with_optimizer: bool
    scaler: Scaler | None
    _strategy: Strategy

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
        if "dynamo" in self._settings.handlers:
            check_compiled(self._strategy, wrapped)
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
            uneven=config.uneven,
            collectives=batches,
            window=self._window,
            synchronize=random.synchronize_rng_states,
        )
        self._registry.loaders.append(prepared)
        self._registry.remember(data_loader, prepared)
        return prepared
