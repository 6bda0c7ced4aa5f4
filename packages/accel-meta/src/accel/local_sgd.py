"""Ranks that train alone and average their parameters now and then."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from torch import nn

from accel_core.errors import CapabilityError, ConfigError, Fault, PrepareError
from accel_core.protocols import TrainsAlone

if TYPE_CHECKING:
    from .accelerator import Accelerator


class LocalSGD:
    """Train ``model`` on each rank alone; make parameters the mean over the ranks every so many steps.

    ``local_sgd_steps``: optimizer steps between two averages; micro-batches that take no step are not
    counted. One more average follows at the end of the context. Buffers are averaged with the parameters,
    the optimizers' states stay each rank's own. With ``enabled=False``, and on one process, nothing changes.

    >>> with LocalSGD(accelerator=accelerator, model=model, local_sgd_steps=8) as local_sgd:
    ...     for inputs, targets in loader:
    ...         with accelerator.accumulate(model):
    ...             accelerator.backward(criterion(model(inputs), targets))
    ...             optimizer.step()
    ...             optimizer.zero_grad()
    ...             local_sgd.step()

    Every rank must take equally many steps. Raises ConfigError for a number of steps that is none,
    PrepareError for a model that ``accelerator`` did not prepare, and CapabilityError for a strategy whose
    ranks cannot train alone. Source: https://arxiv.org/abs/1805.09767
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, local_sgd_steps: int, enabled: bool = True
    ) -> None:
        if isinstance(local_sgd_steps, bool) or not isinstance(local_sgd_steps, int) or local_sgd_steps < 1:
            fault = Fault("local_sgd_steps", local_sgd_steps, "must be a whole number of at least 1")
            raise ConfigError("LocalSGD", [fault])
        strategy = accelerator._strategy
        self.enabled = bool(enabled) and strategy.batches.world_size > 1
        self.num_steps = 0
        """Optimizer steps so far."""
        self.accelerator = accelerator
        self.model = model
        self.local_sgd_steps = local_sgd_steps
        self._stack = ExitStack()
        if not self.enabled:
            return
        if not any(model is known for known in accelerator._registry.models):
            raise PrepareError(
                f"LocalSGD was given a {type(model).__name__} that this Accelerator did not prepare",
                where="LocalSGD(model=...)",
                fix="give the model that prepare() returned",
            )
        if not isinstance(strategy, TrainsAlone):
            raise CapabilityError(
                f"The strategy {strategy.name!r} cannot let ranks train alone: none has the whole model",
                where="LocalSGD",
                fix="use data parallelism (strategy 'ddp'), or LocalSGD(..., enabled=False)",
            )
        self._alone: TrainsAlone = strategy

    def __enter__(self) -> Self:
        if self.enabled:
            self._stack.enter_context(self._alone.alone(self.model))
            self.accelerator._window.alone = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.accelerator._window.alone = False
        # After an error the other ranks may never come.
        if self.enabled and kind is None:
            self._alone.average_(self.model)
        self._stack.__exit__(kind, error, trace)

    def step(self) -> None:
        """Count the optimizer step that was taken, if one was; average when it is time. Collective then."""
        if not self.accelerator.sync_gradients:
            return
        self.num_steps += 1
        if self.enabled and self.num_steps % self.local_sgd_steps == 0:
            self._alone.average_(self.model)


__all__ = ["LocalSGD"]
