"""Every rank has the whole model and its own data; gradients are averaged while backward runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from accel_core.enums import DDPCommunicationHookType
from accel_core.errors import CapabilityError, PrepareError, StateError
from accel_core.protocols import ExplainsFailures, StrategyBase, StrategyContext, Unit
from accel_parallel import join, local_sgd
from accel_parallel.compiling import compile_model
from accel_parallel.container import SharedModel
from accel_parallel.gradients import TorchGradients
from accel_parallel.inspection import (
    check_not_meta,
    check_not_shared,
    check_one_device,
    check_owners,
    offloads,
)
from accel_parallel.placement import place
from accel_parallel.states import PlainState
from accel_parallel.watch import ReductionWatch

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from accel_parallel.comm_hooks import CommHook

_PASSED_ON = {
    "dim": 0,
    "broadcast_buffers": True,
    "bucket_cap_mb": 25,
    "find_unused_parameters": False,
    "check_reduction": False,
    "gradient_as_bucket_view": False,
    "static_graph": False,
}
"""The fields of ``DistributedDataParallelKwargs`` that torch's container takes by the same name.

Their defaults are torch's and are left to it: it warns of some arguments as soon as they are given.
"""


class DataParallel(StrategyBase):
    """Share the model with ``torch.nn.parallel.DistributedDataParallel``.

    ``context.settings["ddp"]`` may hold a ``DistributedDataParallelKwargs``. ``context.collectives``
    may have an attribute ``process_group``, the torch process group that it runs on; without it, or
    with None, the default group is used, and it must have as many ranks as the collectives.

    Raises ConfigError for options that a communication hook does not take, CapabilityError for a hook
    that keeps gradients where the precision scales the loss.
    """

    name = "ddp"

    def __init__(self, context: StrategyContext) -> None:
        self.context = context
        self.batches = context.collectives
        self.gradients = TorchGradients()
        self.states = PlainState(context.collectives)
        self._watches: WeakKeyDictionary[nn.Module, ReductionWatch] = WeakKeyDictionary()
        self._hooks: WeakKeyDictionary[nn.Module, CommHook] = WeakKeyDictionary()
        self._settings = context.settings.get("ddp")
        self._arguments = _arguments(self._settings)
        # Made once for its faults, which are then heard before anything is prepared.
        self._hook()

    @property
    def _group(self) -> Any:
        # Asked for each time: a group that is held here would not be gone when the process ends, and gloo's
        # threads, which end with it, would still run while the interpreter is taken down.
        return getattr(self.context.collectives, "process_group", None)

    def _hook(self) -> CommHook | None:
        """Return a new communication hook, or None when none is wanted."""
        if getattr(self._settings, "comm_hook", DDPCommunicationHookType.NO) == DDPCommunicationHookType.NO:
            return None
        from accel_parallel import comm_hooks

        group = self._group
        known = dist.is_available() and dist.is_initialized()
        # None stands for the whole world: a hook that held the group would keep it from ending.
        hook = comm_hooks.build(self._settings, None if not known or group is dist.group.WORLD else group)
        scaler = getattr(self.context.precision, "scaler", None)
        if scaler is not None and scaler() is not None:
            comm_hooks.refuse_scaled(hook)
        return hook

    def check(self, unit: Unit) -> None:
        """Raise PrepareError for a unit that cannot be shared, CapabilityError for a hook that cannot run.

        Collective when there is a communication hook: the backend is asked.
        """
        check_not_meta(unit)
        check_not_shared(unit)
        check_one_device(unit, self.context.device)
        check_owners(unit)
        self._check_group()
        hook = None if unit.evaluation else self._hook()
        if hook is not None:
            from accel_parallel import comm_hooks

            comm_hooks.check_backend(hook, self._group, self.context.device)

    def _check_group(self) -> None:
        size = dist.get_world_size(self._group) if dist.is_available() and dist.is_initialized() else None
        if size != self.batches.world_size:
            raise PrepareError(
                f"Strategy {self.name!r} has collectives of {self.batches.world_size} rank(s), but torch's "
                f"process group {'was not started' if size is None else f'has {size}'}",
                where=f"rank {self.batches.rank}",
                fix="start the process group first, as PartialState does, or use the strategy 'single'",
            )

    def wrap(self, unit: Unit) -> Unit:
        """Return the unit ready to train: placed, in the precision, compiled if asked, in torch's container.

        Units for evaluation, and models that are offloaded or have no trainable parameters, have no gradients
        to average, and stay out of the container.
        """
        self.check(unit)
        self._forget(unit.model)
        place(unit, self.context.device)
        model = self.context.precision.convert(unit.model)
        # Inside the container: its hooks and ours stay untraced, and torch still cuts the graphs at the
        # container's buckets, since it traces in the first call, from within the container's forward.
        compile_model(model, self.context.settings.get("dynamo"))
        if unit.evaluation or offloads(model):
            return replace(unit, model=model)
        if any(parameter.requires_grad for parameter in model.parameters()):
            model = self._share(model)
        self._watches[model] = ReductionWatch(unit.name, model)
        return replace(unit, model=model)

    def _forget(self, model: nn.Module) -> None:
        """Stop watching what ``model`` was wrapped in before: containers live until they are collected."""
        for known in [known for known in self._watches if self.unwrap(known) is model]:
            self._watches.pop(known).close()

    def _share(self, model: nn.Module) -> SharedModel:
        device = next(model.parameters()).device
        shared = SharedModel(
            model,
            # Only numbered devices take ids; on the CPU torch refuses them.
            device_ids=None if device.index is None or device.type == "cpu" else [device.index],
            process_group=self._group,
            **self._arguments,
        )
        shared.explained_by(self._explain)
        hook = self._hook()
        if hook is not None:
            from accel_parallel import comm_hooks

            comm_hooks.register(shared, hook)
            self._hooks[shared] = hook
        return shared

    @staticmethod
    def register_comm_hook(model: nn.Module, settings: Any) -> None:
        """Register the hook that ``settings`` describe on ``model``, a ``DistributedDataParallel``.

        Collective. Raises as `accel_parallel.comm_hooks.build` and ``register`` do.
        """
        from accel_parallel import comm_hooks

        group = getattr(model, "process_group", None)
        comm_hooks.register(model, comm_hooks.build(settings, group))

    def comm_state(self, model: nn.Module) -> Any:
        """Return what the communication hook of ``model`` keeps from step to step, None when nothing.

        It is a ``PowerSGDState``; a run that is to go on exactly must save and restore it.
        """
        hook = self._hooks.get(model)
        return None if hook is None or isinstance(hook.state, dist.ProcessGroup) else hook.state

    def unwrap(self, model: nn.Module) -> nn.Module:
        """Return the module inside torch's container."""
        if isinstance(model, DistributedDataParallel):
            inner: nn.Module = model.module
            return inner
        return model

    def backward(self, loss: torch.Tensor, *, sync: bool = True, **kwargs: Any) -> None:
        """Compute gradients; the container averages them unless forward ran under ``no_sync``.

        Raises CollectiveError when gradients that should have been averaged were not: they came about
        without the container's forward, or belong to parameters that were frozen at `wrap`. Raises it too
        when a rank did not come to average them in time, or is gone.
        """
        watches = list(self._watches.values())
        for watch in watches:
            watch.before(loss)
        try:
            loss.backward(**kwargs)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            self._explain("backward", error)
            raise
        for watch in watches:
            watch.check()

    def _explain(self, name: str, error: RuntimeError) -> None:
        """Raise what ``error`` in ``name`` means when it came of the communication between the ranks."""
        group = self.batches
        told = group.explain(name, error) if isinstance(group, ExplainsFailures) else None
        if told is not None:
            raise told from error

    def before_step(self, optimizer: Optimizer) -> None:
        """Raise StateError when ``optimizer`` is about to apply gradients that were never averaged."""
        for watch in self._watches.values():
            if watch.local:
                watch.check_step(p for group in optimizer.param_groups for p in group["params"])

    @contextmanager
    def sync_next(self, model: nn.Module) -> Iterator[None]:
        """Average the gradients of the next `backward`, whose forward ran under ``no_sync``.

        What was added up before is averaged with them. Raises CapabilityError for a static graph, and
        StateError when no `backward` came.
        """
        watch = self._watches.get(model)
        if watch is None or not isinstance(model, DistributedDataParallel):
            yield
            return
        if model.static_graph:
            raise CapabilityError(
                "Gradients of a forward under no_sync cannot be synchronised later with static_graph=True:"
                " torch plans the communication of such a graph in its forward",
                where=f"trigger_sync_in_backward, unit {watch.name!r}",
                fix="leave static_graph out, or run the last forward outside of no_sync",
            )
        before, model.require_backward_grad_sync = model.require_backward_grad_sync, True
        watch.late = True
        try:
            yield
            if watch.late:
                raise StateError(
                    "No backward was synchronised: accelerator.backward(loss) belongs into the context",
                    where=f"trigger_sync_in_backward, unit {watch.name!r}",
                    fix="with accelerator.trigger_sync_in_backward(model): accelerator.backward(loss)",
                )
        finally:
            watch.late = False
            model.require_backward_grad_sync = before

    def join(
        self, joinables: Sequence[Any], *, divide_by_initial_world_size: bool = False
    ) -> AbstractContextManager[list[int]]:
        """Return the context in which ranks may run unequally many steps of one model.

        Gradients are the mean over the ranks that have data in that step, or with
        ``divide_by_initial_world_size`` their sum divided by the number of all ranks. In the end all have the
        model of a rank that had the most steps; those are in the list that the context gives.

        Raises CapabilityError or PrepareError for what cannot be joined.
        """
        container = join.container_of(joinables)
        join.check_container(container, has_hook=container in self._hooks)
        return join.joined(
            joinables,
            self.batches,
            self._watches.get(container),
            divide_by_initial_world_size=divide_by_initial_world_size,
        )

    @contextmanager
    def alone(self, model: nn.Module) -> Iterator[None]:
        """Leave gradients of ``model`` and the steps that they make to this rank.

        Raises CapabilityError for a static graph: its first backward must be synchronised.
        """
        watch = self._watches.get(model)
        if watch is None or not isinstance(model, DistributedDataParallel):
            yield
            return
        if model.static_graph:
            raise CapabilityError(
                "A model with static_graph=True cannot be trained without synchronisation",
                where=f"unit {watch.name!r}",
                fix="leave static_graph out of DistributedDataParallelKwargs",
            )
        with model.no_sync():
            yield
        # What they made of the parameters is averaged now; nothing is left to be averaged.
        watch.local = watch.owed = False

    def average_(self, model: nn.Module) -> None:
        """Make what is trained of ``model``, and its buffers, the mean over the ranks. Collective."""
        local_sgd.average_(model, self.batches)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return the container's context in which gradients stay local; an empty one for other models.

        A model with ``static_graph=True`` is synchronised in every backward until the first was. Its first
        backward under ``no_sync`` fails in torch ("expect_autograd_hooks_ INTERNAL ASSERT FAILED"), and
        gradients that are averaged as they are added up are the same in the end.
        """
        if not isinstance(model, DistributedDataParallel):
            return nullcontext()
        watch = self._watches.get(model)
        if model.static_graph and watch is not None and not watch.averaged:
            return nullcontext()
        return model.no_sync()


def _arguments(settings: Any) -> dict[str, Any]:
    if settings is None:
        return {}
    given = {name: getattr(settings, name) for name in _PASSED_ON if hasattr(settings, name)}
    return {name: value for name, value in given.items() if value != _PASSED_ON[name]}


__all__ = ["DataParallel"]
