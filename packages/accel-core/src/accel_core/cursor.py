"""Where running loops over prepared loaders stand, and which of them a line of code is in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dis import opmap
from types import FrameType
from typing import Any, NamedTuple
from weakref import ref

from .nested import leaves

_GENERATOR = 0x20
"""CO_GENERATOR of `inspect`, which is slow to import."""
_FOR = opmap["FOR_ITER"]


class Place(NamedTuple):
    """A frame and the instruction it was at; no reference to it, so that nothing is kept alive."""

    frame: int
    instruction: int
    generator: bool
    by_for: bool
    """It stands at a ``for``, and not at ``next`` or another call."""
    looping: bool
    """That ``for`` advances the loader, through generators at most."""


class LoaderCursor:
    """Where one running iteration of a prepared loader stands.

    The loader updates it before each batch is handed out, so it always speaks of the batch that
    the loop body holds.
    """

    __slots__ = (
        "again",
        "asked",
        "batch",
        "counted",
        "end",
        "ended",
        "measure",
        "number",
        "own",
        "owner",
        "path",
        "previous",
        "remaining",
        "rows",
        "samples",
        "valid",
        "world_batch",
    )

    def __init__(self, owner: object = None) -> None:
        self.owner = owner
        self.end = False
        """This batch is the last one of the iteration."""
        self.remaining: int | None = None
        """Batches left, this one included; None when the length is not known ahead."""
        self.valid: int | None = None
        """Real samples in this batch over all ranks when some are padding; None when all are real."""
        self.world_batch: int | None = None
        """Samples in this batch over all ranks, padding included; None when not known."""
        self.own: int | None = None
        """Real samples in this rank's batch, which come first in it; None when all are."""
        self.rows: int | None = None
        """Samples in this rank's batch, padding included; None when only the batch itself tells."""
        self.again = False
        """This rank's data have ended, and the batch is read for a second time (policy ``cycle``)."""
        self.ended: tuple[int, ...] = ()
        """Ranks that have no batch in this step: they have left the loop, and answer no more."""
        self.batch: Any = None
        """The batch in the loop body's hand."""
        self.number = 0
        """Batches handed out so far, this one included."""
        self.asked: set[tuple[int, int]] = set()
        """Rows gathered for metrics before this batch, each with the samples of the batch they were of."""
        self.previous: tuple[ref[Any], ...] = ()
        """What the batch before held; noted where this one has padding."""
        self.path: tuple[Place, ...] = ()
        """Who iterates, the outermost frame first."""
        self.samples: int | None = 0
        """Real samples of all ranks so far, those of this batch included; None when not known."""
        self.measure: Callable[[Any], int] | None = None
        """Tells the samples of a batch whose size is not known ahead; None where nobody asks."""
        self.counted = 0
        """How many of ``samples`` a `SampleTally` has counted."""

    def hand_out(self, batch: Any = None) -> Any:
        """Note that ``batch`` is handed out next, and return it; the other attributes speak of it already."""
        fresh = self.world_batch
        if fresh is None and self.measure is not None:
            fresh = self.measure(batch)
        if self.valid is not None:
            fresh = self.valid
            self.previous = tuple(_references(self.batch))
        if fresh is None or self.samples is None:
            self.samples = None
        else:
            self.samples += fresh
        self.number += 1
        self.batch = batch
        return batch

    def holds(self, leaf: object) -> bool:
        """Tell whether ``leaf`` is of the batch in hand, or a view of it."""
        return _is_of(leaf, [item for _, item in leaves(self.batch)])

    def held(self, leaf: object) -> bool:
        """Tell whether ``leaf`` is of the batch before the one in hand, as far as that was noted."""
        return _is_of(leaf, [item for item in (made() for made in self.previous) if item is not None])


def _references(batch: Any) -> list[ref[Any]]:
    found = []
    for _, leaf in leaves(batch):
        # Only what has a shape: plain values are shared by many batches.
        if hasattr(leaf, "shape"):
            found.append(ref(leaf))
    return found


def _is_of(leaf: object, items: list[Any]) -> bool:
    base = getattr(leaf, "_base", None)
    # Without a shape it is a plain value, and equal ones may be one object.
    return hasattr(leaf, "shape") and any(
        leaf is item or (base is not None and base is item) for item in items
    )


class Closed(NamedTuple):
    """What is kept of a loop that ended on a batch with padding."""

    valid: int
    world_batch: int | None
    outer: LoaderCursor | None
    """The loop around it, and the number of the batch that this had in hand."""
    number: int


def calling_path(outside: str = "accel_data") -> tuple[Place, ...]:
    """Return the frames of this call, outermost first, without the innermost ones of package ``outside``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _package(frame) in {outside, "accel_core"}:
        frame = frame.f_back
    found: list[Place] = []
    inside = True
    while frame is not None:
        code, at = frame.f_code, frame.f_lasti
        generator = bool(code.co_flags & _GENERATOR)
        by_for = at >= 0 and code.co_code[at] == _FOR
        found.append(Place(id(frame), at, generator, by_for, inside and by_for))
        inside = inside and generator
        frame = frame.f_back
    return tuple(reversed(found))


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def side_by_side(outer: LoaderCursor, inner: LoaderCursor, here: tuple[Place, ...]) -> bool:
    """Tell whether two running loops advance together, as in ``zip``, and are not one in the other.

    ``here``: the `calling_path` of whoever asks; a loop in whose body that stands is a loop inside.
    """
    shared = _shared(outer, inner)
    if not shared or outer.path[shared - 1].instruction == inner.path[shared - 1].instruction:
        return True
    last = _last_running(inner, here)
    if last < shared - 1 or any(not place.generator for place in inner.path[last + 1 :]):
        # What iterates is not running: a function that kept its iterator, or a generator around both.
        return True
    return not inner.path[last].looping


def _shared(outer: LoaderCursor, inner: LoaderCursor) -> int:
    """Return how many frames have begun both loops."""
    shared = 0
    for one, other in zip(outer.path, inner.path, strict=False):
        if one.frame != other.frame:
            break
        shared += 1
    return shared


def _last_running(loop: LoaderCursor, here: tuple[Place, ...]) -> int:
    """Return the innermost frame of ``loop`` that is still running, by its place; -1 when none is."""
    running = {place.frame for place in here}
    return max((at for at, place in enumerate(loop.path) if place.frame in running), default=-1)


def standing_in(cursors: Sequence[LoaderCursor], here: tuple[Place, ...]) -> list[LoaderCursor]:
    """Return the running loop whose body ``here`` is in; all of them where several advance by one ``zip``.

    A loader that is advanced by ``next`` is no loop, and neither is one whose reader has returned: the
    end of its data is not the end of the loop.
    """
    found = [cursors[-1]]
    for outer in reversed(cursors[:-1]):
        inner = found[0]
        shared = _shared(outer, inner)
        if not shared:
            break
        if outer.path[shared - 1].instruction == inner.path[shared - 1].instruction:
            found.insert(0, outer)
            continue
        last = _last_running(inner, here)
        if last >= shared - 1 and inner.path[last].by_for:
            break
        found = [outer]
    return found


__all__ = ["Closed", "LoaderCursor", "Place", "calling_path", "side_by_side", "standing_in"]
