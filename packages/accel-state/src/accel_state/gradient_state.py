"""`GradientState`: the documented view of gradient accumulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accel_core.window import GradientWindow

from . import process

if TYPE_CHECKING:
    from accel_core.config import GradientAccumulationPlugin

_shared: GradientWindow | None = None


def _window_of(plugin: GradientAccumulationPlugin) -> GradientWindow:
    return GradientWindow(
        1 if plugin.num_steps is None else plugin.num_steps,
        adjust_scheduler=plugin.adjust_scheduler,
        sync_with_dataloader=plugin.sync_with_dataloader,
        sync_each_batch=plugin.sync_each_batch,
    )


class GradientState:
    """Show where the accumulation of gradients stands.

    A view over one `GradientWindow`: the one passed as ``window``, or a new one made from
    ``gradient_accumulation_plugin``. Either becomes what ``GradientState()`` without arguments
    shows from then on: the window of the `Accelerator` made last.
    """

    def __init__(
        self,
        gradient_accumulation_plugin: GradientAccumulationPlugin | None = None,
        *,
        window: GradientWindow | None = None,
    ) -> None:
        global _shared
        if window is None and gradient_accumulation_plugin is not None:
            window = _window_of(gradient_accumulation_plugin)
        if window is not None or _shared is None:
            _shared = window or GradientWindow()
        self.window = _shared
        """The window behind this view; loaders, wrappers and ``accumulate`` share it."""
        self.is_xla_gradients_synced = False
        """Whether the gradients of all XLA devices have been summed; strategies for XLA set it."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GradientState) and other.window is self.window

    def __hash__(self) -> int:
        return id(self.window)

    def __repr__(self) -> str:
        return (
            f"Sync Gradients: {self.sync_gradients}\n"
            f"At end of current dataloader: {self.end_of_dataloader}\n"
            f"Extra samples added: {self.remainder}\n"
            f"Gradient accumulation plugin: {self.plugin_kwargs}\n"
        )

    @staticmethod
    def _reset_state() -> None:
        """Forget the shared window, so that a test can start over."""
        global _shared
        _shared = None

    @property
    def initialized(self) -> bool:
        """Tell whether this shows the window of the `Accelerator` made last."""
        return _shared is self.window

    # -- the window ------------------------------------------------------------------------------

    @property
    def num_steps(self) -> int:
        """Return the number of micro-batches in a full window."""
        return self.window.num_steps

    @num_steps.setter
    def num_steps(self, value: int) -> None:
        self.window.resize(value)

    @property
    def adjust_scheduler(self) -> bool:
        """Tell whether the scheduler counts micro-batches that took no optimizer step."""
        return self.window.adjust_scheduler

    @property
    def sync_with_dataloader(self) -> bool:
        """Tell whether the last batch of a loader ends the window."""
        return self.window.sync_with_dataloader

    @property
    def sync_each_batch(self) -> bool:
        """Tell whether ranks synchronise gradients in every micro-batch."""
        return self.window.sync_each_batch

    @property
    def plugin_kwargs(self) -> dict[str, Any]:
        """Return the settings of the window by name."""
        names = ("num_steps", "adjust_scheduler", "sync_with_dataloader", "sync_each_batch")
        return {name: getattr(self.window, name) for name in names}

    @property
    def sync_gradients(self) -> bool:
        """Tell whether the current micro-batch closes its window, so that the optimizer steps."""
        return self.window.sync_gradients

    @sync_gradients.setter
    def sync_gradients(self, value: bool) -> None:
        self.window.sync_gradients = bool(value)

    # -- the running loader ----------------------------------------------------------------------

    @property
    def active_dataloader(self) -> Any:
        """Return the prepared loader that is being iterated, the innermost one; None outside of loops."""
        cursor = self.window.active
        return None if cursor is None else cursor.owner

    @property
    def dataloader_references(self) -> list[Any]:
        """Return all prepared loaders that are being iterated, the outermost first."""
        return [cursor.owner for cursor in self.window.cursors]

    @property
    def in_dataloader(self) -> bool:
        """Tell whether a prepared loader is being iterated."""
        return self.window.active is not None

    @property
    def end_of_dataloader(self) -> bool:
        """Tell whether the batch in the loop body's hand is the last of its loader."""
        cursor = self.window.active
        return cursor is not None and cursor.end

    @property
    def remainder(self) -> int:
        """Return how many samples of the batch are real, over all ranks, when some are padding.

        0 when all of them are, -1 outside of loops.
        """
        cursor = self.window.active
        if cursor is None:
            return -1
        return cursor.valid or 0


process.at_reset(GradientState._reset_state)

__all__ = ["GradientState"]
