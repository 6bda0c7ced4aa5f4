"""From an outline and limits to a device for every part; without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from accel_core.errors import CapabilityError

from .outline import Columns, Outline
from .packing import DISK, HOST, Packing, Room, pack
from .units import shown

CPU, ON_DISK = "cpu", "disk"
KEEPERS = (CPU, ON_DISK)
"""What holds weights and does not run them where there is an accelerator, fastest first."""


@dataclass(frozen=True, slots=True)
class Solution:
    """Where everything lies. ``devices``: one for each part; ``main``: what runs what is offloaded.

    ``shares``: how far each device was to be filled, within its limit.
    """

    outline: Outline
    groups: list[list[int]]
    columns: Columns
    packing: Packing
    limits: Mapping[int | str, int]
    shares: Mapping[int | str, int]
    workspace: int
    devices: list[int | str]
    main: int | str

    def device_map(self, *, merged: bool = True) -> dict[str, int | str]:
        """Return the device of every name; ``merged``: of whole modules where they lie together.

        In the order of the model, but for one case: the first device that runs is ``main``, as readers of
        maps take it.
        """
        found = self.outline.device_map(self.devices, merged=merged)
        runs = next((name for name, device in found.items() if device not in KEEPERS), None)
        if runs is None or found[runs] == self.main:
            return found
        first = next(name for name, device in found.items() if device == self.main)
        return {first: self.main, **found}


def solve(
    outline: Outline,
    limits: Mapping[int | str, int],
    *,
    shares: Mapping[int | str, int] | None = None,
    offload_buffers: bool = False,
    workspace: int = 0,
    look_ahead: bool = False,
) -> Solution:
    """Place every part under ``limits``, a size for each device in the order in which they are filled.

    ``shares``: how far to fill each of them, by default as far as they go. ``workspace``: bytes that stay
    free on every device that runs a part. Raises CapabilityError when the limit on the disk is exceeded;
    without one the disk takes all the rest.
    """
    groups = outline.groups()
    columns = outline.columns(groups, offload_buffers=offload_buffers)
    runners = runners_of(limits)
    host = limits.get(CPU)
    room = Room(
        tuple((shares or limits)[key] - workspace for key in runners),
        host,
        None if host is None else host - workspace,
    )
    packing = pack(columns, room, look_ahead=look_ahead)
    names: dict[int, int | str] = {**dict(enumerate(runners)), HOST: CPU, DISK: ON_DISK}
    devices: list[int | str] = [ON_DISK] * len(outline.names)
    for group, place in zip(groups, packing.places, strict=True):
        for number in group:
            devices[number] = names[place]
    _fits_the_disk(columns, packing, limits)
    # With nothing but the disk, the host runs it all, in place.
    main = CPU if packing.main is None else names[packing.main]
    return Solution(outline, groups, columns, packing, limits, shares or limits, workspace, devices, main)


def runners_of(limits: Collection[int | str]) -> list[int | str]:
    """Return the devices that run models: all but those that keep weights."""
    return [key for key in limits if key not in KEEPERS]


def _fits_the_disk(columns: Columns, packing: Packing, limits: Mapping[int | str, int]) -> None:
    places = zip(packing.places, columns.stored, strict=True)
    needed = sum(size for place, size in places if place == DISK)
    limit = limits.get(ON_DISK)
    if limit is not None and needed > limit:
        raise CapabilityError(
            f"The model does not fit: {shown(needed)} are left for the disk, which may take {shown(limit)}",
            fix="give a device more in max_memory, or leave 'disk' out of it: it has no limit then",
        )


__all__ = ["CPU", "KEEPERS", "ON_DISK", "Solution", "runners_of", "solve"]
