"""The part of ``Accelerator`` that is beside the loop: triggers and the profiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accel_core.config import ProfileKwargs
from accel_core.errors import CollectiveError, ConfigError, Fault
from accel_state.profiling import profiled

from .triggers import anywhere

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

    from accel_state import ProcessState

    from .resolve import Settings


class ToolsAPI:
    """Agree on a signal between ranks, and measure where time goes."""

    _process: ProcessState
    _settings: Settings
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
        """Return whether any rank raised its flag since the latest check; take all flags down. Collective.

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

    # -- where time goes -------------------------------------------------------------------------

    def profile(
        self, profile_handler: ProfileKwargs | None = None
    ) -> AbstractContextManager[torch.profiler.profile]:
        """Return a context that records what its body does with torch's profiler, and gives that profiler.

        ``profile_handler``: what is recorded and where it is written, by default the one that the
        Accelerator was given, or else torch's own choice. Each rank that enters it records itself, and
        writes to ``output_trace_dir``, if that is set, the Chrome trace ``profile_<rank>.json``.

        Raises CapabilityError for activities that cannot be recorded here, StateError in another profiler.

        >>> with accelerator.profile() as profiler:
        ...     train()
        >>> print(profiler.key_averages().table(sort_by="cpu_time_total", row_limit=10))
        """
        handler = profile_handler or self._settings.handlers.get("profile") or ProfileKwargs()
        if not isinstance(handler, ProfileKwargs):
            fault = Fault("profile_handler", handler, "must be a ProfileKwargs or None")
            raise ConfigError("profile", [fault])
        return profiled(handler, self._process.topology.rank)
