"""Every rank has the whole model and its own data; gradients are averaged while backward runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from accel_core.enums import DDPCommunicationHookType
from accel_core.errors import CapabilityError, PrepareError
from accel_core.protocols import StrategyBase, StrategyContext, Unit
from accel_parallel.gradients import TorchGradients
from accel_parallel.inspection import check_not_meta, check_not_shared, check_one_device, check_owners
from accel_parallel.placement import place
from accel_parallel.states import PlainState
from accel_parallel.watch import ReductionWatch

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
    """

    name = "ddp"

    def __init__(self, context: StrategyContext) -> None:
        self.context = context
        self.batches = context.collectives
        self.gradients = TorchGradients()
        self.states = PlainState(context.collectives)
        self._watches: WeakKeyDictionary[nn.Module, ReductionWatch] = WeakKeyDictionary()
        self._arguments = _arguments(context.settings.get("ddp"))

    @property
    def _group(self) -> Any:
        # Asked for each time: a group that is held here would not be gone when the process ends, and gloo's
        # threads, which end with it, would still run while the interpreter is taken down.
        return getattr(self.context.collectives, "process_group", None)

    def check(self, unit: Unit) -> None:
        """Raise PrepareError for a unit that cannot be shared."""
        check_not_meta(unit)
        check_not_shared(unit)
        check_one_device(unit, self.context.device)
        check_owners(unit)
        self._check_group()

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
        """Return the unit ready to train: placed, in the precision, in torch's container.

        Units for evaluation and models without trainable parameters have no gradients to average, and
        stay out of the container.
        """
        self.check(unit)
        self._forget(unit.model)
        place(unit, self.context.device)
        model = self.context.precision.convert(unit.model)
        if unit.evaluation:
            return replace(unit, model=model)
        if any(parameter.requires_grad for parameter in model.parameters()):
            model = self._share(model)
        self._watches[model] = ReductionWatch(unit.name, model)
        return replace(unit, model=model)

    def _forget(self, model: nn.Module) -> None:
        """Stop watching what ``model`` was wrapped in before: containers live until they are collected."""
        for known in [known for known in self._watches if self.unwrap(known) is model]:
            self._watches.pop(known).close()

    def _share(self, model: nn.Module) -> DistributedDataParallel:
        device = next(model.parameters()).device
        return DistributedDataParallel(
            model,
            # Only numbered devices take ids; on the CPU torch refuses them.
            device_ids=None if device.index is None or device.type == "cpu" else [device.index],
            process_group=self._group,
            **self._arguments,
        )

    def unwrap(self, model: nn.Module) -> nn.Module:
        """Return the module inside torch's container."""
        if isinstance(model, DistributedDataParallel):
            inner: nn.Module = model.module
            return inner
        return model

    def backward(self, loss: torch.Tensor, *, sync: bool = True, **kwargs: Any) -> None:
        """Compute gradients; the container averages them unless forward ran under ``no_sync``.

        Raises CollectiveError when gradients that should have been averaged were not: they came about
        without the container's forward, or belong to parameters that were frozen at `wrap`.
        """
        loss.backward(**kwargs)  # type: ignore[no-untyped-call]
        for watch in self._watches.values():
            watch.check()

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return the container's context in which gradients stay local; an empty one for other models."""
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _arguments(settings: Any) -> dict[str, Any]:
    if settings is None:
        return {}
    for name in ("comm_hook", "comm_wrapper"):
        hook = getattr(settings, name, DDPCommunicationHookType.NO)
        if hook != DDPCommunicationHookType.NO:
            raise CapabilityError(
                f"Gradient communication hooks are not supported by this version: {name}={str(hook)!r}",
                where="DistributedDataParallelKwargs",
                fix=f"leave {name} out",
            )
    given = {name: getattr(settings, name) for name in _PASSED_ON if hasattr(settings, name)}
    return {name: value for name, value in given.items() if value != _PASSED_ON[name]}


__all__ = ["DataParallel"]
