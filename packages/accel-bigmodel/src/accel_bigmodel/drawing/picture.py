"""What is drawn of a plan: a bar for each device, cut into what its memory is for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..planning.plan import DevicePlan, Row, Share
from ..planning.units import shown

KINDS = ("weights", "caches", "activations", "room for offloaded layers", "free")
"""What memory is for, in the order of a bar."""
_MOST_NAMES = 6


@dataclass(frozen=True, slots=True)
class Bar:
    """One device. ``pieces``: bytes of each of KINDS; ``said``: how full it is; ``holds``: names of parts."""

    device: str
    pieces: tuple[int, ...]
    said: str
    holds: tuple[str, ...]

    @property
    def total(self) -> int:
        """Return the bytes that the whole bar stands for."""
        return sum(self.pieces)


@dataclass(frozen=True, slots=True)
class Picture:
    """Bars with a title above and notes below."""

    title: str
    bars: tuple[Bar, ...]
    notes: tuple[str, ...]

    @property
    def kinds(self) -> list[int]:
        """Return the numbers of KINDS that any bar shows."""
        return [kind for kind in range(len(KINDS)) if any(bar.pieces[kind] for bar in self.bars)]


def picture_of(plan: DevicePlan, title: str) -> Picture:
    """Return what to draw of ``plan``."""
    everything = sum(share.weights for share in plan.shares)
    bars = tuple(_bar(share, plan.rows, everything) for share in plan.shares)
    return Picture(title, bars, plan.notes)


def _bar(share: Share, rows: Sequence[Row], everything: int) -> Bar:
    # What has no limit is drawn beside the whole model.
    free = share.free if share.free is not None else everything - share.weights
    pieces = (share.weights, share.caches, share.workspace, share.visitors, max(0, free))
    used = share.weights + share.reserved
    said = shown(used) if share.limit is None else f"{shown(used)} of {shown(share.limit)}"
    return Bar(str(share.device), pieces, said, tuple(_holds(share, rows)))


def _holds(share: Share, rows: Sequence[Row]) -> Iterator[str]:
    own = [row.name for row in rows if row.device == share.device and row.bytes]
    yield from own[: _MOST_NAMES - 1]
    if len(own) == _MOST_NAMES:
        yield own[-1]
    elif len(own) > _MOST_NAMES:
        yield f"{len(own) - _MOST_NAMES + 1} more"


__all__ = ["KINDS", "Bar", "Picture", "picture_of"]
