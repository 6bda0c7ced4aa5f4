"""One process has the model to itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from accel_core.errors import CapabilityError
from accel_core.protocols import StrategyBase, StrategyContext, Unit
from accel_parallel.compiling import compile_model
from accel_parallel.gradients import TorchGradients
from accel_parallel.inspection import check_not_meta, check_not_shared, check_owners
from accel_parallel.placement import place
from accel_parallel.states import PlainState


class Single(StrategyBase):
    """Train on one device: the model is placed and converted to the precision, and not wrapped.

    ``context.settings["ddp"]`` is left aside, communication hooks too: there is nothing to send.
    """

    name = "single"

    def __init__(self, context: StrategyContext) -> None:
        self.context = context
        self.batches = context.collectives
        self.gradients = TorchGradients()
        self.states = PlainState(context.collectives)

    def check(self, unit: Unit) -> None:
        """Raise PrepareError for models without values or shared already, and for stray optimizers.

        Raises CapabilityError on several processes: each would train a model of its own.
        """
        if self.batches.world_size > 1:
            raise CapabilityError(
                f"The strategy {self.name!r} does not share a model between processes; each of the"
                f" {self.batches.world_size} would train another one",
                where=f"rank {self.batches.rank}, unit {unit.name!r}",
                fix="use a strategy for several processes, for example 'ddp'",
            )
        check_not_meta(unit)
        check_not_shared(unit)
        check_owners(unit)

    def wrap(self, unit: Unit) -> Unit:
        """Return the unit, its model on the device, in the precision, compiled if asked: the same objects."""
        self.check(unit)
        place(unit, self.context.device)
        model = self.context.precision.convert(unit.model)
        return replace(unit, model=compile_model(model, self.context.settings.get("dynamo")))

    def unwrap(self, model: nn.Module) -> nn.Module:
        """Return the model as it is."""
        return model

    def backward(self, loss: torch.Tensor, *, sync: bool = True, **kwargs: Any) -> None:
        """Compute gradients; ``kwargs`` are those of ``torch.Tensor.backward``."""
        loss.backward(**kwargs)  # type: ignore[no-untyped-call]


__all__ = ["Single"]
