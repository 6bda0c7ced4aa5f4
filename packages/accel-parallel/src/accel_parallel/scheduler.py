"""The scheduler wrapper: moves the learning rate on when, and only when, the optimizers moved."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from accel_core.errors import ConfigError, Fault
from accel_core.window import GradientWindow

from .optimizer import AcceleratedOptimizer

_log = logging.getLogger(__name__)


class AcceleratedScheduler:
    """A learning rate scheduler that follows its optimizers.

    ``step`` does nothing while gradients accumulate or after a step that was skipped for an overflow.
    Otherwise it steps the ``scheduler`` ``num_processes`` times, the documented default: a schedule
    written for one process then ends after the same number of samples on several. With
    ``split_batches`` the number of updates does not depend on the number of processes, and it steps
    once. ``step_with_optimizer=False`` passes every call through, once.

    ``ReduceLROnPlateau`` is told each metric once: its patience counts measurements, not updates.
    Schedules with ``total_steps`` stay at their end when ``num_processes`` steps at a time overrun it;
    on one process they raise, as in torch.
    """

    def __init__(
        self,
        scheduler: LRScheduler,
        optimizers: AcceleratedOptimizer | Sequence[AcceleratedOptimizer],
        step_with_optimizer: bool = True,
        split_batches: bool = False,
        *,
        window: GradientWindow | None = None,
        num_processes: int = 1,
    ) -> None:
        if not isinstance(num_processes, int) or isinstance(num_processes, bool) or num_processes < 1:
            fault = Fault("num_processes", num_processes, "must be a whole number of at least 1")
            raise ConfigError("AcceleratedScheduler", [fault])
        self.scheduler = scheduler
        self.optimizers = tuple(optimizers) if isinstance(optimizers, (list, tuple)) else (optimizers,)
        self.step_with_optimizer = step_with_optimizer
        self.split_batches = split_batches
        self.num_processes = num_processes
        self.window = window if window is not None else GradientWindow()
        self._repeats = 1 if split_batches else num_processes
        self._follows = step_with_optimizer and not isinstance(scheduler, ReduceLROnPlateau)
        self._counts = hasattr(scheduler, "_step_count")
        total = getattr(scheduler, "total_steps", None)
        self._limit: int | None = total if self._repeats > 1 and isinstance(total, int) else None
        self._told_end = False

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Step the scheduler if its optimizers have stepped; arguments are passed on."""
        if not self._follows:
            self.scheduler.step(*args, **kwargs)
            return
        if not self.window.sync_gradients:
            if self._counts and self.window.adjust_scheduler:
                # torch's own count of calls; the position in the schedule is last_epoch and stays.
                self.scheduler._step_count += 1
            return
        for optimizer in self.optimizers:
            if optimizer.step_was_skipped:
                return
        if self._repeats == 1:
            self.scheduler.step(*args, **kwargs)
        else:
            self._step_repeatedly(*args, **kwargs)

    def _step_repeatedly(self, *args: Any, **kwargs: Any) -> None:
        for _ in range(self._repeats):
            if self._limit is not None and self.scheduler.last_epoch >= self._limit:
                self._tell_end()
                return
            self.scheduler.step(*args, **kwargs)

    def _tell_end(self) -> None:
        if not self._told_end:
            self._told_end = True
            _log.warning(
                "%s has reached its total_steps=%s and stays there: it is stepped %d times per update, once "
                "per process. Give it the number of updates times the number of processes, or pass "
                "split_batches=True or step_scheduler_with_optimizer=False.",
                type(self.scheduler).__name__,
                self._limit,
                self._repeats,
            )

    def get_last_lr(self) -> list[Any]:
        """Return the learning rate of each parameter group."""
        return self.scheduler.get_last_lr()

    def get_lr(self) -> list[Any]:
        """Return what the scheduler's ``get_lr`` returns: for schedulers that call it themselves."""
        return self.scheduler.get_lr()

    def print_lr(self, *args: Any, **kwargs: Any) -> None:
        """Print the learning rate, for schedulers that (still) can."""
        printer: Any = getattr(self.scheduler, "print_lr", None)
        if printer is None:
            print(f"{type(self.scheduler).__name__}: learning rates {self.get_last_lr()}")
        else:
            printer(*args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the scheduler's state."""
        self.scheduler.load_state_dict(state_dict)

    def __getattr__(self, name: str) -> Any:
        if name == "scheduler":
            raise AttributeError(name)
        return getattr(self.scheduler, name)

    def __repr__(self) -> str:
        return f"AcceleratedScheduler({self.scheduler!r}, num_processes={self.num_processes})"


__all__ = ["AcceleratedScheduler"]
