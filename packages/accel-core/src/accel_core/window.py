"""The accumulation window: which micro-batches form one optimizer update.

Plain Python, shared by the loader (which knows where the data ends), the wrappers of optimizer and
scheduler (which act at the end of a window only) and the ``Accelerator`` (which moves it on). One
window object belongs to one ``Accelerator``; nothing here is global.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .cursor import Closed, LoaderCursor, calling_path, standing_in
from .errors import ConfigError, Fault, StateError

if TYPE_CHECKING:
    from .tally import SampleTally


class GradientWindow:
    """Count micro-batches and decide when gradients are synchronised and applied.

    ``num_steps``: micro-batches in a full window. ``sync_with_dataloader``: the last batch of a
    loader ends the window. ``sync_each_batch``: ranks synchronise in every micro-batch, to save
    memory. ``adjust_scheduler``: the scheduler counts micro-batches that took no step.

    ``divisor`` is what ``backward`` divides a mean loss by. When the loader knows its length it is
    already right for a short last window; when it does not, ``correction`` is the factor (other
    than 1) by which gradients must be multiplied after the closing backward, so that a window of
    k micro-batches is always the mean over k.
    """

    __slots__ = (
        "_cursors",
        "_filled",
        "_loops",
        "adjust_scheduler",
        "alone",
        "at_end",
        "backwards",
        "closed",
        "divisor",
        "inside",
        "models",
        "num_steps",
        "position",
        "sealed",
        "sync_each_batch",
        "sync_gradients",
        "sync_with_dataloader",
        "tally",
        "uneven",
        "unsettled",
        "weighings",
        "weight",
        "weighted",
    )

    def __init__(
        self,
        num_steps: int = 1,
        *,
        adjust_scheduler: bool = True,
        sync_with_dataloader: bool = True,
        sync_each_batch: bool = False,
    ) -> None:
        self.num_steps = _checked(num_steps)
        self.adjust_scheduler = adjust_scheduler
        self.sync_with_dataloader = sync_with_dataloader
        self.sync_each_batch = sync_each_batch
        self.sync_gradients = True
        """Whether the latest micro-batch closed its window; true before the first."""
        self.position = 0
        """Micro-batches seen in the open window; 0 when none is open."""
        self.divisor = num_steps
        self.models: Sequence[object] = ()
        """What the micro-batches of the open window accumulate for; empty when nobody said."""
        self.inside = False
        """Whether a micro-batch is being computed."""
        self.at_end: Callable[[], None] | None = None
        """Called once, when the open window is over."""
        self.tally: SampleTally | None = None
        """Counts samples for schedules that are written in them; None when there are none."""
        self._filled = False
        self.backwards = 0
        """Backwards of the latest micro-batch."""
        self.weighted: bool | None = None
        """Whether the open window's backwards have weights; None before the first."""
        self.unsettled = False
        """Gradients are a sum that still has to be divided by the total weight of the window."""
        self.weight: float | None = None
        """The total weight, over all ranks, of the latest window that was given weights."""
        self.weighings = 0
        """How many windows were given weights so far."""
        self.closed: Closed | None = None
        """The loop that ended last, when the batch in its body's hand had padding."""
        self.alone = False
        """Each rank steps by its own gradients: a window is not shared."""
        self.uneven = False
        """Ranks may have different numbers of batches: what one knows ahead does not hold for the others."""
        self.sealed = False
        """Ranks stand at different steps: none may begin what all must take part in."""
        self._cursors: list[LoaderCursor] = []
        self._loops: Sequence[LoaderCursor] | None = None
        """The loops that micro-batches are computed in; None when that is not known yet."""

    # -- moved on by accumulate() ------------------------------------------------------------

    def advance(self) -> bool:
        """Enter the next micro-batch; return whether it closes the window."""
        loops = self._standing() if self.sync_with_dataloader else ()
        if loops and self.position == 0 and not self.uneven:
            known = [loop.remaining for loop in loops if loop.remaining is not None]
            if known:
                self.divisor = max(1, min(self.num_steps, *known))
        self.position += 1
        self._filled = False
        self.backwards = 0
        self.sync_gradients = self.position >= self.num_steps or any(loop.end for loop in loops)
        return self.sync_gradients

    def leave(self) -> None:
        """Leave the micro-batch; a window that it closed is over."""
        if self.sync_gradients:
            self.position = 0
            self.divisor = self.num_steps
            self.models = ()
            self.weighted = None
            if self.at_end is not None:
                act, self.at_end = self.at_end, None
                act()

    def admit(self, *, weighted: bool, add: bool = False) -> None:
        """Count a backward inside a micro-batch.

        Raises StateError when a window would mix backwards with and without weights, and for more
        backwards in one micro-batch than it has models, unless ``add`` says that it is meant: in a window
        of several micro-batches it is mostly two micro-batches that were taken for one.
        """
        if self.weighted is not weighted:
            if self.weighted is not None:
                raise _mixed(self)
            self.weighted = weighted
        self.backwards += 1
        if self.backwards > 1 and self.num_steps > 1 and not add and self.backwards > len(self.models):
            raise _twice(self)

    def restart(self) -> None:
        """Forget an open window: the next micro-batch is the first of a new one."""
        self.sync_gradients = True
        self.unsettled = False
        self.leave()

    def retract(self) -> None:
        """Take back ``advance``: a micro-batch that failed before its backward was none."""
        self.position -= 1
        self.sync_gradients = self.position == 0
        self.leave()

    @property
    def filled(self) -> bool:
        """Whether the latest micro-batch has had a backward or a step."""
        return self._filled

    @filled.setter
    def filled(self, value: bool) -> None:
        self._filled = value
        if value and self.tally is not None:
            self.tally.note(self.active, needed=True)

    def complete(self) -> None:
        """Note that gradients are applied: they are complete, whoever computed them."""
        self._filled = True
        if self.tally is not None:
            self.tally.note(self.active, needed=False)

    @property
    def correction(self) -> float:
        """Return the factor that gradients still need after the closing backward (1.0: none)."""
        if self.divisor == self.position or not self.sync_gradients or self.position == 0:
            return 1.0
        return self.divisor / self.position

    def corrected(self) -> None:
        """Note that ``correction`` was applied, so further backwards of this micro-batch need none."""
        self.divisor = self.position

    def resize(self, num_steps: int) -> None:
        """Change the length of the windows to come; an open window keeps its own divisor."""
        self.num_steps = _checked(num_steps)
        if self.position == 0:
            self.divisor = num_steps

    # -- moved on by prepared loaders --------------------------------------------------------

    def start_loop(self) -> None:
        """Raise StateError where a loop would begin on some ranks while others are in the one before."""
        if self.sealed:
            raise StateError(
                "A loop over a prepared loader began inside of join_uneven_inputs after training had: ranks"
                " begin loops together, and some may still be in the one before",
                where="with accelerator.join_uneven_inputs(...)",
                fix="enter join_uneven_inputs for each epoch anew, and evaluate outside of it",
            )

    def push(self, cursor: LoaderCursor) -> None:
        """Make ``cursor`` the running loader; the one before it continues when it is removed."""
        cursor.path = calling_path()
        self.closed = None
        self._loops = None
        self._cursors.append(cursor)

    def remove(self, cursor: LoaderCursor) -> None:
        """Forget ``cursor``, wherever it stands: loops may be left by break, in any order."""
        if cursor in self._cursors:
            self._cursors.remove(cursor)
            self._loops = None
        cursor.batch = None
        if cursor.valid is not None:
            outer = self.active
            self.closed = Closed(cursor.valid, cursor.world_batch, outer, outer.number if outer else 0)
        elif self.closed is not None and self.closed.outer is cursor and self.closed.number != cursor.number:
            self.closed = None

    def _standing(self) -> Sequence[LoaderCursor]:
        """Return the loops whose end is the end of the data for a micro-batch."""
        found = self._loops
        if found is None:
            cursors = self._cursors
            found = self._loops = cursors if len(cursors) < 2 else standing_in(cursors, calling_path("accel"))
        return found

    @property
    def cursors(self) -> tuple[LoaderCursor, ...]:
        """Return the cursors of all running loaders, the outermost first."""
        return tuple(self._cursors)

    @property
    def active(self) -> LoaderCursor | None:
        """Return the cursor of the innermost running loader, or None outside of loops."""
        return self._cursors[-1] if self._cursors else None


def unsettled(window: GradientWindow) -> StateError:
    """Return the error for gradients of a weighted window that would be used before they are a mean."""
    window.unsettled = False
    return StateError(
        "The micro-batch that closes a weighted window had no backward: its gradients are still sums, of this"
        " rank alone",
        where=f"micro-batch {window.position or window.num_steps} of {window.num_steps}",
        fix="call backward in every micro-batch; for one without samples backward(0 * loss, weight=0)",
    )


def _mixed(window: GradientWindow) -> StateError:
    before, now = ("with", "without") if window.weighted else ("without", "with")
    return StateError(
        f"backward() was called {now} weight= in a window whose other backwards came {before}: their sum has"
        " no meaning",
        where=f"micro-batch {window.position} of {window.num_steps}",
        fix="give every backward of a window a weight, or none",
    )


def _twice(window: GradientWindow) -> StateError:
    return StateError(
        f"backward() was called {window.backwards} times in one accumulate() for {len(window.models) or 1}"
        " model(s): both losses would count as one micro-batch, not as two",
        where=f"micro-batch {window.position} of {window.num_steps}",
        fix="for two micro-batches enter accumulate() for each; for two losses of one micro-batch add them,"
        " backward(first + second), or say that it is meant: backward(second, add=True)",
    )


def _checked(num_steps: int) -> int:
    if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 1:
        fault = Fault("num_steps", num_steps, "must be a whole number of at least 1")
        raise ConfigError("gradient accumulation", [fault])
    return num_steps


__all__ = ["GradientWindow", "LoaderCursor", "unsettled"]
