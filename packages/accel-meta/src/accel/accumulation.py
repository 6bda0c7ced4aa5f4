"""The context of one micro-batch."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from accel_core.errors import StateError
from accel_core.window import unsettled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from accel_core.protocols import Strategy
    from accel_core.window import GradientWindow


class Accumulate:
    """Move the window on; keep the ranks from synchronising until the window closes.

    A class and not a generator: entering it is on the path of every step.
    """

    __slots__ = ("_models", "_stack", "_strategy", "_window")

    def __init__(self, window: GradientWindow, strategy: Strategy, models: Sequence[nn.Module]) -> None:
        self._window = window
        self._strategy = strategy
        self._models = models
        self._stack: ExitStack | None = None

    def __enter__(self) -> None:
        window, models = self._window, self._models
        if window.inside:
            raise _nested()
        if window.position == 0:
            window.models = models
        elif window.models is not models and window.models != models:
            _compare(window, models)
        window.inside = True
        if window.advance() or window.sync_each_batch:
            return
        stack = self._stack = ExitStack()
        for model in models:
            stack.enter_context(self._strategy.no_sync(model))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._window.inside = False
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.__exit__(kind, error, trace)
        window = self._window
        if kind is not None and not window.filled:
            # No gradient came of it: tried again, it must not be counted twice.
            window.retract()
            return
        dropped = window.unsettled and window.sync_gradients and kind is None
        window.leave()
        if dropped:
            raise unsettled(window)


def _nested() -> StateError:
    return StateError(
        "accumulate() was entered inside accumulate(): the inner one would count as a micro-batch of its own",
        where="with accelerator.accumulate(...)",
        fix="use one for all models: with accelerator.accumulate(first, second)",
    )


def _compare(window: GradientWindow, models: Sequence[nn.Module]) -> None:
    """Raise StateError when an open window is to go on with other models than it began with."""
    if set(map(id, window.models)) == set(map(id, models)):
        return
    names = [", ".join(type(model).__name__ for model in each) or "none" for each in (window.models, models)]
    raise StateError(
        f"accumulate() was given other models ({names[1]}) than the window began with ({names[0]}): for some,"
        " the micro-batch that closes it would never come",
        where=f"after micro-batch {window.position} of {window.num_steps}",
        fix="name all models in each: with accelerator.accumulate(first, second); to give an open window up,"
        " call free_memory() and prepare again",
    )
