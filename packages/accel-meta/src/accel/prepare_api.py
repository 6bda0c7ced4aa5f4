"""The part of ``Accelerator`` that makes objects ready: models, optimizers, schedulers and loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, TypeVarTuple, overload

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

import accel_data  # a door: what it leads to is imported with the first loader
from accel_core.errors import PrepareError
from accel_core.logging import get_logger
from accel_core.protocols import GuardsSteps
from accel_parallel import AcceleratedOptimizer, AcceleratedScheduler
from accel_state import random

from .compilation import check_compiled
from .configuration_api import ConfigurationAPI
from .preparation import (
    check_ownership,
    check_when_stepped,
    form_units,
    optimizers_of,
    reject_foreign,
    role_of,
    wrap_units,
)
from .process_api import ProcessAPI

if TYPE_CHECKING:
    from accel_core.protocols import Scaler, Strategy

    from .request import Request
    from .units import PreparedUnits

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
ScheduleIn = Literal["updates", "samples", "tokens"]
UnitParts = nn.Module | tuple[Any, ...] | list[Any]

logger = get_logger(__name__)

_SCHEDULER_NOTE = (
    "The learning rate scheduler moves %s steps per optimizer step, one per process, as documented:"
    " its length is that of one process. To count in something else, pass schedule_in='updates', 'samples'"
    " or 'tokens' to prepare(); or split_batches=True, or step_scheduler_with_optimizer=False."
)
_SINGLE_STEPS_NOTE = (
    "%s counts samples and can only be stepped one by one: that is one Python call per sample. LambdaLR and"
    " torch's other schedules move at once."
)


class PrepareAPI(ProcessAPI, ConfigurationAPI):
    """Sort, wrap and remember what is given to ``prepare``."""

    device_placement: bool
    step_scheduler_with_optimizer: bool
    scaler: Scaler | None
    _strategy: Strategy
    _schedules_told = False

    @overload
    def prepare(
        self,
        thing: T,
        /,
        *,
        device_placement: Sequence[bool] | None = None,
        schedule_in: ScheduleIn | None = None,
    ) -> T: ...

    # mypy 2 does not see that *args: Any takes *args: *Ts.
    @overload
    def prepare(
        self,
        *args: *Ts,
        device_placement: Sequence[bool] | None = None,
        schedule_in: ScheduleIn | None = None,
    ) -> tuple[*Ts]: ...

    @overload
    def prepare(
        self,
        *,
        device_placement: Sequence[bool] | None = None,
        schedule_in: ScheduleIn | None = None,
        **units: UnitParts,
    ) -> PreparedUnits: ...

    @overload
    def prepare(
        self,
        *args: *Ts,
        device_placement: Sequence[bool] | None = None,
        schedule_in: ScheduleIn | None = None,
        **units: UnitParts,
    ) -> tuple[*Ts, PreparedUnits]: ...

    def prepare(  # type: ignore[misc]
        self,
        *args: Any,
        device_placement: Sequence[bool] | None = None,
        schedule_in: ScheduleIn | None = None,
        **units: UnitParts,
    ) -> Any:
        """Return the objects ready for this set-up, in the order given.

        Models, optimizers, schedulers and loaders, any number in any order. Objects of other kinds come
        back as they are; one that was prepared before comes back as what it became then.
        ``device_placement`` overrides the accelerator's for each object, those of units last.
        ``schedule_in``, ours: what one step of the schedulers stands for, an update, a sample read by any
        rank, or a unit of the weight given to ``backward``; by default as documented.

        ``units``, ours: models under names of their own, each alone or in a tuple with what trains it. They
        come back together, after everything else.

        >>> units = accelerator.prepare(actor=(actor, actor_optimizer), critic=(critic, critic_optimizer))
        >>> actor, actor_optimizer = units.actor

        Raises PrepareError for an object given twice, an optimizer whose parameters no prepared model
        has, a scheduler whose optimizer was not prepared or that cannot be counted so, and units that are
        none.
        """
        from .request import Request, check_names, check_parts

        request = Request.of(args, units)
        check_names(self._registry, request)
        check_parts(request, self._registry.made_of)
        places = self._places(request, device_placement)
        made: dict[int, Any] = {}
        fresh: dict[str, list[int]] = {"model": [], "optimizer": [], "scheduler": [], "loader": []}
        for position, thing in enumerate(request.things):
            known = self._registry.made_of(thing)
            role = role_of(thing)
            if role == "scheduler":
                # Asked again, it may be asked to count in something else.
                fresh[role].append(position)
            elif known is not None or role is None:
                made[position] = thing if known is None else known
            else:
                reject_foreign(thing)
                fresh[role].append(position)
        if schedule_in is not None and not fresh["scheduler"]:
            kinds = ", ".join(type(thing).__name__ for thing in request.things) or "nothing"
            raise PrepareError(
                f"schedule_in={schedule_in!r} was given without a scheduler",
                where=f"prepare() of {kinds}",
                fix="give it in the call that prepares the scheduler",
            )
        made.update(self._prepare_units(request, fresh["model"], fresh["optimizer"], places))
        for position in fresh["scheduler"]:
            made[position] = self.prepare_scheduler(request.things[position], schedule_in=schedule_in)
        for position in fresh["loader"]:
            loader = request.things[position]
            made[position] = self.prepare_data_loader(loader, device_placement=places[position])
        return request.answer(made, self._name_units(request, made))

    def _places(self, request: Request, given: Sequence[bool] | None) -> list[bool]:
        if given is None:
            return [self.device_placement] * len(request.things)
        if len(given) != len(request.things):
            raise ValueError(f"device_placement has {len(given)} entries for {len(request.things)} objects")
        return [self.device_placement if place is None else bool(place) for place in given]

    def _name_units(self, request: Request, made: Mapping[int, Any]) -> PreparedUnits:
        from .units import PreparedUnit, PreparedUnits

        found: dict[str, PreparedUnit] = {}
        named = self._registry.named
        for name in request.names():
            parts = [made[position] for position, owner in enumerate(request.owners) if owner == name]
            unit = found[name] = PreparedUnit.of(name, parts)
            named[name] = named[name].joined(unit) if name in named else unit
        return PreparedUnits(found)

    def _prepare_units(
        self, request: Request, models: Sequence[int], optimizers: Sequence[int], places: Sequence[bool]
    ) -> dict[int, Any]:
        made: dict[int, Any] = {}
        registry, things = self._registry, request.things
        known = registry.parameter_ids() | {id(p) for at in models for p in things[at].parameters()}
        if known:
            for at in optimizers:
                check_ownership(things[at], known)
        named = [
            (request.owners[at] or f"model_{len(registry.models) + offset}", things[at], places[at])
            for offset, at in enumerate(models)
        ]
        units = form_units(named, [things[at] for at in optimizers], train=True)
        replaced: dict[int, Optimizer] = {}
        for at, unit, wrapped in zip(models, units, wrap_units(self._strategy, units), strict=True):
            made[at] = self._keep_model(things[at], wrapped)
            replaced.update({id(a): b for a, b in zip(unit.optimizers, wrapped.optimizers, strict=True)})
        for at in optimizers:
            inner = replaced.get(id(things[at]), things[at])
            made[at] = self._keep_optimizer(things[at], inner, places[at])
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
        strategy = self._strategy
        if isinstance(strategy, GuardsSteps):
            inner.register_step_pre_hook(lambda optimizer, *_: strategy.before_step(optimizer))
        if not self._registry.models:
            check_when_stepped(prepared, self._registry)
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

    def prepare_scheduler(
        self, scheduler: Any, *, schedule_in: ScheduleIn | None = None
    ) -> AcceleratedScheduler:
        """Return ``scheduler`` wrapped so that it steps when its optimizer did, once per process.

        ``schedule_in``: what one of its steps stands for instead. Raises PrepareError when its optimizer
        was not prepared, when it was prepared before with another ``schedule_in``, or cannot be counted so.
        """
        registry = self._registry
        known = registry.made_of(scheduler)
        if isinstance(known, AcceleratedScheduler):
            if schedule_in not in {None, known.schedule_in}:
                raise PrepareError(
                    f"This scheduler was prepared before, with schedule_in={known.schedule_in!r}",
                    where=f"{type(known.scheduler).__name__}, schedule_in={schedule_in!r}",
                    fix="give schedule_in when it is prepared for the first time",
                )
            return known
        reject_foreign(scheduler)
        prepared = AcceleratedScheduler(
            scheduler,
            optimizers_of(scheduler, registry.made_of, registry.optimizers),
            step_with_optimizer=self.step_scheduler_with_optimizer,
            split_batches=self._settings.loader.split_batches,
            window=self._window,
            num_processes=self.num_processes,
            schedule_in=schedule_in,
        )
        if schedule_in == "samples":
            from accel_parallel.advance import mover

            if mover(scheduler) is None:
                logger.warning(_SINGLE_STEPS_NOTE, type(scheduler).__name__)
        if prepared.steps_per_update > 1 and not self._schedules_told:
            # Once, also where everything is prepared again after free_memory().
            self._schedules_told = True
            logger.warning(_SCHEDULER_NOTE, self.num_processes)
        registry.schedulers.append(prepared)
        registry.remember(scheduler, prepared)
        return prepared

    def prepare_data_loader(
        self,
        data_loader: DataLoader[Any],
        device_placement: bool | None = None,
        slice_fn_for_dispatch: Any = None,
        *,
        sharding: str | None = None,
        uneven: str | None = None,
    ) -> DataLoader[Any]:
        """Return ``data_loader`` giving this rank its own share of the data, on its device.

        ``sharding``: ``"global"``, ``"sharded"`` or ``"auto"`` for this loader; ``uneven``: ``"stop_all"``,
        ``"pad_masked"``, ``"cycle"`` or ``"independent"`` where ranks run out of data at different steps.
        None: as in ``DataLoaderConfiguration``.
        """
        known = self._registry.made_of(data_loader)
        if isinstance(known, DataLoader):
            return known
        config = self._settings.loader
        batches = self._strategy.batches
        prepared = accel_data.prepare_data_loader(
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
            sharding=config.sharding if sharding is None else sharding,
            audit=config.audit,
            uneven=config.uneven if uneven is None else uneven,
            collectives=batches,
            window=self._window,
            synchronize=random.synchronize_rng_states,
        )
        self._registry.loaders.append(prepared)
        self._registry.remember(data_loader, prepared)
        return prepared

    def skip_first_batches(self, dataloader: DataLoader[Any], num_batches: int = 0) -> DataLoader[Any]:
        """Return a loader like ``dataloader`` whose first iteration starts after ``num_batches`` batches.

        Raises PrepareError for a negative number, and for something that is no torch loader.
        """
        return accel_data.skip_first_batches(dataloader, num_batches)
