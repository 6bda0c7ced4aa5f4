"""The part of ``Accelerator`` that is beside the loop: triggers and the profiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accel_core.errors import CollectiveError

from .triggers import anywhere

if TYPE_CHECKING:
    from accel_state import ProcessState


class ToolsAPI:
    """Agree on a signal between ranks, and measure where time goes."""

    _process: ProcessState
    _trigger = False

    # -- triggers --------------------------------------------------------------------------------

    def set_trigger(self) -> None:
        """Raise this rank's flag: from the next `check_trigger` on, every rank knows. Not collective.

        >>> if loss.item() < threshold:  # true on some ranks only
        ...     accelerator.set_trigger()
        >>> if accelerator.check_trigger():  # the same on all ranks
        ...     break
        """
        self._trigger = True

    def check_trigger(self) -> bool:
        """Return whether any rank has raised its flag since the latest check, and take all flags down. Collective.

        Every rank calls it in the same step. Raises DistributedOperationException on all ranks when some
        make another exchange instead, CollectiveError when a rank does not come in time.
        """
        raised, self._trigger = self._trigger, False
        try:
            return anywhere(raised, self._process.collectives, "check_trigger")
        except CollectiveError:
            self._trigger = raised  # what was not heard is still to be said
            raise

    def set_breakpoint(self) -> None:
        """Do what `set_trigger` does, under the name that the documents use once."""
        self.set_trigger()

    def check_breakpoint(self) -> bool:
        """Do what `check_trigger` does, under the name that the documents use once."""
        return self.check_trigger()
