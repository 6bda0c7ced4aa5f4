"""Find the batch size with which a function runs without running out of memory."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from accel_core.errors import CapabilityError, ConfigError, Fault, StateError

from .call import SizedCall, name_of, signature_without_size
from .generators import Generators
from .meeting import FITS, LOST, MEMORY, Alone, meeting
from .release import forget_error
from .signs import should_reduce_batch_size
from .sizes import Sizes, largest

if TYPE_CHECKING:
    from accel_core.window import GradientWindow

_OWNER = "find_executable_batch_size"


class Accumulating(Protocol):
    """What can spread one update over several micro-batches: an ``Accelerator``."""

    gradient_accumulation_steps: int
    gradient_state: Any


def find_executable_batch_size(
    function: Callable[..., Any] | None = None,
    starting_batch_size: int = 128,
    reduce_batch_size_fn: Callable[..., int] | None = None,
    *,
    keep_global_batch: Accumulating | None = None,
    trial: Callable[..., object] | None = None,
) -> Callable[..., Any]:
    """Decorate ``function(batch_size, ...)`` so that it is retried with smaller sizes when memory runs out.

    It is called without the batch size. The first attempt gets ``starting_batch_size``; each time that
    memory runs out the size is halved, or what ``reduce_batch_size_fn`` returns, which takes nothing or the
    size that did not fit. Everything that holds memory must be made inside. Random number generators
    start each attempt alike, so the result is that of a run that began with the size found.

    On several processes all of them try the same size: memory that runs out on one makes all retry.

    Ours, by keyword only:

    * ``keep_global_batch``: an ``Accelerator``. Sizes are the divisors of the starting one, and what a
      smaller size lacks is made up by its ``gradient_accumulation_steps``, so an update sees as many
      samples as before. ``function`` must compute in ``accelerator.accumulate(model)``.
    * ``trial``: a short function of the same arguments, one training step, say. The largest size at
      which it fits is found by bisection before ``function`` is called, with that size.

    Raises BatchSizeCallError (a TypeError) for a function or call that leaves no place for the batch
    size, ConfigError for other wrong arguments, CapabilityError when no size fits, CollectiveError when
    the ranks cannot start again together. Errors that do not mean memory pass through untouched.

    >>> @find_executable_batch_size(starting_batch_size=256)
    ... def train(batch_size):
    ...     accelerator.free_memory()
    ...     ...
    >>> train()
    """
    if function is None:
        return functools.partial(
            find_executable_batch_size,
            starting_batch_size=starting_batch_size,
            reduce_batch_size_fn=reduce_batch_size_fn,
            keep_global_batch=keep_global_batch,
            trial=trial,
        )
    seen = signature_without_size(function)
    _check(reduce_batch_size_fn, keep_global_batch, trial)
    sizes = Sizes(starting_batch_size, reduce_batch_size_fn, divisors=keep_global_batch is not None)
    steps = None if keep_global_batch is None else _Steps(keep_global_batch, starting_batch_size)

    @functools.wraps(function)
    def found(*args: Any, **kwargs: Any) -> Any:
        call = SizedCall(function, args, kwargs)
        first = None if trial is None else SizedCall(trial, args, kwargs)
        return _Finder(call, sizes, steps).run(first)

    found.__signature__ = seen  # type: ignore[attr-defined]
    return found


class _Steps:
    """The accumulation of an ``Accelerator``, raised while the batch is smaller than it was meant to be."""

    def __init__(self, accelerator: Accumulating, whole: int) -> None:
        self._accelerator = accelerator
        self._whole = whole
        self._base = 0
        self._set = 0

    def begin(self) -> None:
        # A second call begins where the first did, unless somebody has set another number since.
        if self._accelerator.gradient_accumulation_steps != self._set:
            self._base = self._accelerator.gradient_accumulation_steps

    def fit(self, size: int) -> None:
        self._set = self._accelerator.gradient_accumulation_steps = self._base * (self._whole // size)
        self._window.filled = False
        self._window.backwards = 0

    def check(self, name: str) -> None:
        """Raise StateError when gradients were computed outside of the windows that were to hold them."""
        if self._set > 1 and self._window.filled and not self._window.backwards:
            raise StateError(
                f"{name} calls backward outside of accelerator.accumulate(model): each micro-batch was an"
                f" update of its own, with a gradient {self._set} times too small",
                where=f"gradient_accumulation_steps={self._set}, which keep_global_batch raised",
                fix="put forward, backward and step of each batch into `with accelerator.accumulate(model):`",
            )

    @property
    def _window(self) -> GradientWindow:
        window: GradientWindow = self._accelerator.gradient_state.window
        return window

    def restore(self) -> None:
        self._set = self._accelerator.gradient_accumulation_steps = self._base


class _Finder:
    """One call of a decorated function."""

    def __init__(self, call: SizedCall, sizes: Sizes, steps: _Steps | None) -> None:
        self._call = call
        self._sizes = sizes
        self._steps = steps
        self._meeting: Alone = meeting(call.name)
        self._generators = Generators()
        self._tried: list[int] = []
        self._said = ""

    def run(self, trial: SizedCall | None) -> Any:
        if self._steps is not None:
            self._steps.begin()
        try:
            size = self._sizes.start
            if trial is not None:
                size = largest(self._sizes.ladder(), lambda each: self._attempt(trial, each, again=True)[0])
            while size:
                fits, value = self._attempt(self._call, size)
                if fits:
                    return value
                size = self._sizes.below(size)
            raise self._nothing_fits()
        except BaseException as error:
            self._meeting.failed(error)
            if self._steps is not None:
                self._steps.restore()
            raise

    def _attempt(self, call: SizedCall, size: int, *, again: bool = False) -> tuple[bool, Any]:
        """Return whether ``call(size)`` came through on all ranks, and its value.

        ``again``: start anew in any case, so that the value is dropped.
        """
        outer = sys.exception()
        if self._steps is not None:
            self._steps.fit(size)
        self._meeting.begin(size)
        self._tried.append(size)
        value, kind = None, FITS
        try:
            value = call(size)
            if self._steps is not None:
                self._steps.check(call.name)
        except Exception as error:
            kind = MEMORY if should_reduce_batch_size(error) else LOST
            # A rank that another one left hears of it as an error of the exchange that it was in.
            if kind == LOST and not (isinstance(error, RuntimeError) and self._meeting.somebody_left()):
                raise
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            if kind == MEMORY:
                self._said = said
                self._meeting.out_of_memory(said)
            forget_error(error, outer)
        fits = kind == FITS and self._meeting.everybody_fits()
        if not fits or again:
            value = None
            self._meeting.retreat(kind)
            self._generators.restore()
        return fits, value

    def _nothing_fits(self) -> CapabilityError:
        tried = ", ".join(map(str, self._tried))
        where = f"batch sizes tried: {tried}" + (f"; at last: {self._said}" if self._said else "")
        return CapabilityError(
            f"No executable batch size found, reached zero: {self._call.name} ran out of memory each time",
            where=where,
            fix="build everything that holds memory inside the function, begin it with"
            " accelerator.free_memory(), or use a smaller model",
        )


def _check(reduce: Any, keep: Any, trial: Any) -> None:
    faults = []
    if keep is not None and not all(
        hasattr(keep, name) for name in ("gradient_accumulation_steps", "gradient_state")
    ):
        faults.append(Fault("keep_global_batch", keep, "must be an Accelerator"))
    if reduce is not None and (keep is not None or trial is not None):
        other = "keep_global_batch" if keep is not None else "trial"
        faults.append(
            Fault("reduce_batch_size_fn", name_of(reduce), f"contradicts {other}", "pass one of them")
        )
    if faults:
        raise ConfigError(_OWNER, faults)
    if trial is not None:
        signature_without_size(trial, "trial")


__all__ = ["Accumulating", "find_executable_batch_size"]
