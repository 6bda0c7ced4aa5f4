"""Which device holds which part: filled in the order of the model, with room for what comes and goes.

Devices that run the model are filled one after the other. What they have no room for is kept by the host
and by the disk, and brought to the first of them while it runs. Room for the largest such part, and for what
those parts leave there, is a demand on that device that depends on what is offloaded, which depends on
the room. The least demand that meets itself is found by going up from none: a larger demand can only offload
more, so the first that suffices is the least, and more memory never offloads more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from .outline import Columns, Totals


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes for parts of the model, by device. ``runners`` run it, in order; ``host`` and the disk only keep.

    ``host``: None where nothing may be kept there. ``alone``: what the host has when it runs the model,
    because no runner can. The disk has no limit.
    """

    runners: tuple[int, ...]
    host: int | None
    alone: int | None


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each group lies: a runner by its number, HOST or DISK.

    ``main``: what runs the offloaded ones, None when nothing but the disk has room; ``demand``: the bytes
    kept free there for them.
    """

    places: list[int]
    main: int | None
    demand: int


HOST, DISK = -1, -2


def pack(columns: Columns, room: Room, *, look_ahead: bool = False) -> Packing:
    """Place every group.

    ``look_ahead``: a device that has no room for the next group takes the first later ones that fit.
    """
    settle = _settle_ahead if look_ahead else _settle_in_order
    totals = columns.totals()
    for main in range(len(room.runners)):
        places, demand = settle(columns, totals, room.runners[main:])
        held = any(place == 0 and size for place, size in zip(places, columns.resident, strict=True))
        if held or not any(columns.resident):
            places = [place if place == DISK else place + main for place in places]
            _keep(columns, places, room.host, look_ahead=look_ahead)
            return Packing(places, main, demand)
    if room.alone is not None:
        # The host is all there is to run it.
        places, demand = settle(columns, totals, (room.alone,))
        if 0 in places:
            return Packing([HOST if place == 0 else DISK for place in places], HOST, demand)
    return Packing([DISK] * len(columns.resident), None, 0)


def reach(sums: Sequence[int], limits: Sequence[int], start: int = 0) -> list[int]:
    """Return where each device ends that takes what fits from ``start`` on; ``sums`` begin at the front."""
    ends = []
    last = len(sums) - 1
    for limit in limits:
        end = bisect_right(sums, sums[start] + limit) - 1 if limit >= 0 else start
        # Parts without any bytes are no reason to use a device.
        start = end if end == last or sums[end] > sums[start] else start
        ends.append(start)
    return ends


def _settle_in_order(columns: Columns, totals: Totals, limits: Sequence[int]) -> tuple[list[int], int]:
    """Return the runner of each group, else DISK, with room for their demand on the first; and the demand."""
    demand = 0
    while True:
        ends = reach(totals.resident, [limits[0] - demand, *limits[1:]])
        needed = totals.demand[ends[-1]]
        if needed <= demand:
            break
        demand = needed
    places: list[int] = []
    for number, end in enumerate(ends):
        places += [number] * (end - len(places))
    return places + [DISK] * (len(columns.resident) - len(places)), demand


def _settle_ahead(columns: Columns, _: Totals, limits: Sequence[int]) -> tuple[list[int], int]:
    """Do as `_settle_in_order`, and look further where the next group does not fit a device."""
    demand = 0
    while True:
        places = [DISK] * len(columns.resident)
        away = list(range(len(places)))
        for number, limit in enumerate(limits):
            taken = _first_run(columns.resident, away, limit if number else limit - demand)
            for group in taken:
                places[group] = number
            away = [group for group in away if places[group] == DISK]
        needed = sum(columns.left[group] for group in away)
        needed += max((columns.layer[group] for group in away), default=0)
        if needed <= demand:
            return places, demand
        demand = needed


def _first_run(sizes: Sequence[int], groups: Sequence[int], limit: int) -> list[int]:
    """Return the first of ``groups`` with any bytes that fits, and those after it as long as they fit."""
    taken: list[int] = []
    for group in groups:
        if sizes[group] <= limit and (taken or sizes[group]):
            taken.append(group)
            limit -= sizes[group]
        elif taken:
            break
    if not any(sizes[group] for group in groups):
        return list(groups)
    return taken


def _keep(columns: Columns, places: list[int], limit: int | None, *, look_ahead: bool) -> None:
    """Move from the disk to the host what it has room for."""
    away = [group for group, place in enumerate(places) if place == DISK]
    if look_ahead:
        taken = _first_run(columns.stored, away, -1 if limit is None else limit)
    else:
        sums = list(accumulate((columns.stored[group] for group in away), initial=0))
        taken = away[: reach(sums, [-1 if limit is None else limit])[0]]
    for group in taken:
        places[group] = HOST


__all__ = ["DISK", "HOST", "Packing", "Room", "pack", "reach"]
