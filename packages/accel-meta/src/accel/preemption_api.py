"""What the ``Accelerator`` knows of the end of its time: signals, deadlines, and how to leave."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, NoReturn

from accel_core.config import PreemptionKwargs
from accel_core.errors import CollectiveError

if TYPE_CHECKING:
    from accel_core.window import GradientWindow
    from accel_state.preemption import PreemptionGuard, StopReason
    from accel_state.process import ProcessState

    from .resolve import Settings


class PreemptionAPI:
    """Stop all ranks at one step, in time for a last save, and leave so that a scheduler comes back."""

    _settings: Settings
    _process: ProcessState
    _window: GradientWindow

    @cached_property
    def preemption(self) -> PreemptionGuard:
        """Return what watches signals and deadlines: from the start with PreemptionKwargs, else from now."""
        from accel_state import leaving, preemption

        settings = self._settings.handlers.get("preemption")
        assert settings is None or isinstance(settings, PreemptionKwargs)
        known = preemption.current()
        guard = preemption.start(settings, self._process.collectives)
        folder = self._marker_folder(guard)
        if known is None and folder is not None and self._process.topology.rank == 0:
            leaving.remove_marker(folder)  # the run that it speaks of goes on here
        return guard

    @property
    def should_stop(self) -> bool:
        """Return whether all ranks stop here: save, and call `exit_for_requeue`. Collective.

        It is asked at the end of each step, equally often on all ranks:

        >>> for batch in loader:
        ...     ...
        ...     if accelerator.should_stop:
        ...         accelerator.save_state()
        ...         accelerator.exit_for_requeue()

        True after SIGTERM or SIGUSR1 on any rank, when a deadline leaves no more time than a save needs
        (PreemptionKwargs, and SLURM's end of the job), when a hook of `stop_when` says so, or after
        `request_stop`. All ranks hear it at the same step: where there are several, at the next one or,
        when steps are short, within 0.3 seconds. From the first question on, or from the start with
        PreemptionKwargs, these signals end the process no longer; a second SIGTERM, more than 5 seconds
        later, does. Raises CollectiveError inside of join_uneven_inputs.
        """
        if self._window.sealed:
            raise CollectiveError(
                "should_stop was asked for inside of join_uneven_inputs: one that is done never answers",
                where="accelerator.should_stop",
                fix="ask after the context",
            )
        return self.preemption.check(self._place() if self._process.debug else 0)

    @property
    def stop_reason(self) -> StopReason | None:
        """Return why the ranks stop, and which rank said so first; None while they do not."""
        from accel_state import preemption

        guard = preemption.current()
        return None if guard is None else guard.reason

    def request_stop(self, reason: str = "requested") -> None:
        """Ask all ranks to stop; it is enough that one does, and `should_stop` tells all."""
        self.preemption.request_stop(reason)

    def stop_when(self, hook: Callable[[], object]) -> Callable[[], object]:
        """Have `should_stop` ask ``hook`` too, on this rank; a true answer stops all, a text is the reason.

        >>> accelerator.stop_when(lambda: Path("stop").exists() and "there is a file called stop")
        """
        return self.preemption.stop_when(hook)

    def exit_for_requeue(
        self,
        code: int = 75,
        *,
        directory: str | os.PathLike[str] | None = None,
        step: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        patience: float = 60.0,
    ) -> NoReturn:
        """Leave with ``code`` on all ranks, so that a scheduler or launcher starts the run again. Collective.

        Waits for saves in the background, then rank 0 writes ``preempted.json`` into ``directory``, else
        that of PreemptionKwargs, else the project's: reason, rank, ``step``, ``checkpoint`` (that of the
        latest save), time, host. 75 is EX_TEMPFAIL of sysexits.h. What runs at exit and is not over
        ``patience`` seconds later is cut off.

        Raises SystemExit; ConfigError for a code outside of 1 to 125; what a save that failed raises.
        """
        from accel_state.leaving import leave

        wait = getattr(self, "wait_for_checkpoint", None)
        if wait is not None:
            wait()
        guard = self.preemption
        folder = directory if directory is not None else self._marker_folder(guard)
        leave(guard, code, directory=folder, step=step, checkpoint=checkpoint, patience=patience)

    @property
    def restart_count(self) -> int:
        """Return how often ``accel launch --max_restarts`` (or torchrun) has started this run again."""
        from accel_state.leaving import restart_count

        return restart_count()

    def _marker_folder(self, guard: PreemptionGuard) -> str | os.PathLike[str] | None:
        return guard.settings.directory or self._settings.project.project_dir

    def _place(self) -> int:
        """Return the number of the batch in the outermost loop, which is that of all ranks; 0 outside."""
        cursors = self._window.cursors
        return cursors[0].number if cursors else 0


__all__ = ["PreemptionAPI"]
