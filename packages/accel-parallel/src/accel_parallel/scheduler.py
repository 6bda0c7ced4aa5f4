"""The scheduler wrapper: moves the learning rate on when, and only when, the optimizers moved."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from accel_core.errors import CheckpointError, ConfigError, Fault, PrepareError, UnknownNameError
from accel_core.window import GradientWindow

from .advance import advance, mover
from .optimizer import AcceleratedOptimizer
from .schedule_units import UNITS, Meter, Tokens

_log = logging.getLogger(__name__)


class AcceleratedScheduler:
    """A learning rate scheduler that follows its optimizers.

    ``step`` does nothing while gradients accumulate or after a step that was skipped for an overflow.
    Otherwise it steps the ``scheduler`` ``num_processes`` times, the documented default: a schedule
    written for one process then ends after the same number of samples on several. With
    ``split_batches`` the number of updates does not depend on the number of processes, and it steps
    once. ``step_with_optimizer=False`` passes every call through, once.

    ``ReduceLROnPlateau`` is told each metric once: its patience counts measurements, not updates.
    Schedules with ``total_steps`` stay at their end when several steps at a time overrun it; where they
    move one by one they raise, as in torch.

    ``schedule_in`` says what one step of the schedule stands for instead, on any number of processes:
    one of the ``"updates"``, one of the ``"samples"`` that all ranks read for them, or of the
    ``"tokens"``, the weights given to ``backward``. Raises PrepareError for a schedule that cannot be
    counted so.
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
        schedule_in: str | None = None,
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
        self.schedule_in = schedule_in
        self._repeats = 1 if split_batches or schedule_in is not None else num_processes
        self._follows = step_with_optimizer and not isinstance(scheduler, ReduceLROnPlateau)
        self._counts = hasattr(scheduler, "_step_count")
        self._meter = None if schedule_in is None else self._measure(schedule_in)
        total = getattr(scheduler, "total_steps", None)
        several = self._repeats > 1 or self.schedule_in not in {None, "updates"}
        self._limit: int | None = total if several and isinstance(total, int) else None
        self._told_end = False

    def _measure(self, unit: str) -> Meter:
        kind, make = type(self.scheduler).__name__, UNITS.get(unit)
        if make is None:
            raise UnknownNameError("unit of a schedule", str(unit), UNITS)
        what, fix = "", "leave schedule_in out"
        if isinstance(self.scheduler, ReduceLROnPlateau):
            what = f"{kind} counts measurements, not {unit}"
        elif not self.step_with_optimizer:
            what = f"{kind} does not follow its optimizer's updates, so it cannot move by their {unit}"
            fix = "leave out schedule_in, or step_scheduler_with_optimizer=False"
        elif make is Tokens and mover(self.scheduler) is None:
            what = f"{kind} can only be stepped one by one, and an update has thousands of tokens"
            fix = "write it as LambdaLR, or as SequentialLR of torch's own schedules; or count 'updates'"
        if what:
            raise PrepareError(what, where=f"schedule_in={unit!r}", fix=fix)
        return make(self.window)

    @property
    def marks(self) -> tuple[int, ...]:
        """How far the count of samples or tokens has come; empty for a schedule that counts neither."""
        return () if self._meter is None else self._meter.marks

    @marks.setter
    def marks(self, value: tuple[int, ...]) -> None:
        if self._meter is not None:
            self._meter.marks = value

    @property
    def steps_per_update(self) -> int:
        """Return how often an update steps a schedule that counts nothing; the documented default."""
        return self._repeats if self._follows else 1

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Step the scheduler if its optimizers have stepped; arguments are passed on.

        Raises StateError when the samples or tokens of the update are not known.
        """
        if not self._follows:
            self.scheduler.step(*args, **kwargs)
            return
        if not self.window.sync_gradients:
            if self._counts and self.window.adjust_scheduler:
                # torch's own count of calls; the position in the schedule is last_epoch and stays.
                self.scheduler._step_count += 1
            return
        # Asked for a skipped step too: what it was computed from is gone.
        units = 1 if self._meter is None else self._meter.take()
        for optimizer in self.optimizers:
            if optimizer.step_was_skipped:
                return
        if self._limit is not None or units != 1 or self._repeats != 1:
            self._step_repeatedly(units, *args, **kwargs)
        else:
            self.scheduler.step(*args, **kwargs)

    def _step_repeatedly(self, units: int, *args: Any, **kwargs: Any) -> None:
        wanted = units * self._repeats
        steps = wanted
        if self._limit is not None:
            steps = min(wanted, self._limit - self.scheduler.last_epoch)
        if self._meter is not None:
            if args or kwargs:
                raise TypeError(f"step() of a schedule that counts {self.schedule_in} takes no arguments")
            advance(self.scheduler, steps)
        else:
            for _ in range(steps):
                self.scheduler.step(*args, **kwargs)
        if steps < wanted:
            self._tell_end()

    def _tell_end(self) -> None:
        if not self._told_end:
            self._told_end = True
            _log.warning(
                "%s has reached its total_steps=%s and stays there: %s",
                type(self.scheduler).__name__,
                self._limit,
                f"it counts {self.schedule_in}; give it as many as the run has."
                if self.schedule_in is not None
                else f"it is stepped {self._repeats} times per update, once per process. Give it the number"
                " of updates times the number of processes, or pass schedule_in='updates' to prepare(),"
                " split_batches=True or step_scheduler_with_optimizer=False.",
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
        """Return the scheduler's state, with ``schedule_in`` if that was given."""
        state = self.scheduler.state_dict()
        return state if self.schedule_in is None else {**state, "schedule_in": self.schedule_in}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the scheduler's state.

        Raises CheckpointError for a state whose position is counted in another unit; the state of a plain
        scheduler is counted in updates.
        """
        saved = state_dict.get("schedule_in")
        if saved != self.schedule_in and (saved, self.schedule_in) != (None, "updates"):
            raise CheckpointError(
                f"The schedule was saved with schedule_in={saved!r}, this one has {self.schedule_in!r}: the"
                " learning rate would jump",
                where=type(self.scheduler).__name__,
                fix="prepare it with the same schedule_in, or give the state to the attribute .scheduler to"
                " take its position as it is",
            )
        kept = {key: value for key, value in state_dict.items() if key != "schedule_in"}
        self.scheduler.load_state_dict(kept)

    def __getattr__(self, name: str) -> Any:
        if name == "scheduler":
            raise AttributeError(name)
        return getattr(self.scheduler, name)

    def __repr__(self) -> str:
        return f"AcceleratedScheduler({self.scheduler!r}, num_processes={self.num_processes})"


__all__ = ["AcceleratedScheduler"]
