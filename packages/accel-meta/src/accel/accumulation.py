"""The context of one micro-batch."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

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
        window = self._window
        if window.advance() or window.sync_each_batch:
            return
        stack = self._stack = ExitStack()
        for model in self._models:
            stack.enter_context(self._strategy.no_sync(model))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.__exit__(kind, error, trace)
        self._window.leave()
