"""One save in the background: its thread, its outcome, and at which step all ranks hear of a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from accel_core.errors import AccelError, CheckpointError, CollectiveError
from accel_core.protocols import CheckpointIO, Collectives

from .agreement import together
from .snapshot import SnapshotSink

_PATIENCE = 5.0
"""Seconds to wait for the other ranks' threads, which are about to do the same, before raising alone."""


class Flight:
    """A save on its way."""

    def __init__(
        self,
        store: CheckpointIO,
        group: Collectives,
        path: str,
        snapshot: SnapshotSink,
        step: int | None,
        after: Callable[[], object] | None,
    ) -> None:
        self.path = path
        self.ended = False
        """Whether the thread is through."""
        self.error: BaseException | None = None
        self._store = store
        self._group = group
        self._snapshot = snapshot
        self._step = step
        self._after = after
        self._committed = False
        self._passed = 0
        """How many boundaries the training has come to."""
        self._failing = False
        self._agreed = 0
        """The boundary at which all ranks raise."""
        self._settled, self._done = threading.Event(), threading.Event()
        # Not a daemon: the interpreter waits for it before it ends, and before groups are destroyed.
        self._thread = threading.Thread(target=self._run, name="accel-save", daemon=False)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self) -> None:
        """Return when it has ended, or never began."""
        if self._thread.ident is not None:
            # Not the thread itself: an interrupted join() leaves it marked as ended (Python 3.11, bpo-45274).
            self._done.wait()
            self._thread.join()

    def due(self) -> bool:
        """Count a boundary that the training has come to, and tell whether the failure is raised there."""
        self._passed += 1
        if not self._failing:
            return False
        # The ranks' threads are agreeing on a boundary, which takes milliseconds.
        self._settled.wait(_PATIENCE)
        return self._passed >= self._agreed

    def failure(self) -> CheckpointError:
        """Return what went wrong, with the checkpoint and the rank."""
        error, group = self.error, self._group
        told = (error.what, error.where, error.fix) if isinstance(error, AccelError) else ("", "", "")
        what = told[0] or f"{type(error).__name__}: {error}"
        outcome = (
            f"The checkpoint {self.path} was saved in the background, but what was to follow failed"
            if self._committed
            else f"The checkpoint {self.path} was not saved in the background"
        )
        where = told[1]
        if not where.startswith("rank "):
            where = f"rank {group.rank} of {group.world_size}, {where}".rstrip(", ")
        fix = told[2] or "see the error above; what was saved before is untouched"
        failure = CheckpointError(f"{outcome}: {what}", where=where, fix=fix)
        failure.__cause__ = error
        return failure

    # -- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        # Whoever starts a thread goes on when the thread lets go of the interpreter, which takes it 5 ms.
        time.sleep(0.001)
        try:
            try:
                self._save()
            finally:
                self._snapshot.release()
            self._committed = True
            # Some ranks may have nothing to do.
            together(self._group, self._follow, "do what follows the save")
        except BaseException as error:  # noqa: BLE001 - it is raised where the training hears of it
            self.error = error
            self._agree(error)
        finally:
            self.ended = True
            self._done.set()

    def _save(self) -> None:
        sink = self._store.begin(self.path, step=self._step)
        try:
            self._snapshot.replay(sink)
        except Exception as error:
            # Where a rank is gone the others cannot be told.
            with suppress(CollectiveError):
                self._store.abort(sink, error)
            raise
        self._store.commit(sink)

    def _follow(self) -> None:
        if self._after is not None:
            self._after()

    def _agree(self, error: BaseException) -> None:
        """Find the first boundary that no rank has passed: from now on none passes another one unasked."""
        self._failing = True
        try:
            if not isinstance(error, CollectiveError):
                self._agreed = max(self._group.all_gather_object(self._passed)) + 1
        except Exception:  # noqa: BLE001 - a rank is gone: each raises when it can
            self._agreed = 0
        finally:
            self._settled.set()


__all__ = ["Flight"]
