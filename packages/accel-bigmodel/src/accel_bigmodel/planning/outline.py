"""A model as a planner sees it: parts that stay whole, in the order of the model; without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar

Device = TypeVar("Device")


@dataclass(slots=True)
class Branch:
    """A module that may be taken apart. ``items``: what is in it, parts by number, and further branches.

    Its parts are those numbered from ``first`` up to, and without, ``last``.
    """

    name: str
    first: int
    last: int = 0
    items: list[Branch | int] = field(default_factory=list)


@dataclass(slots=True)
class Outline:
    """Parts that stay whole: modules without children or that must not be split, and tensors beside modules.

    All sizes are bytes. ``parameters`` and ``buffers`` count what is shared once, in the first part that
    has it; ``layers`` counts all parameters that a part needs while it runs. ``caches``: what a part keeps
    where it runs, beside its weights. ``links``: pairs of parts that share a parameter.
    """

    names: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    parameters: list[int] = field(default_factory=list)
    buffers: list[int] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    links: list[tuple[int, int]] = field(default_factory=list)
    caches: dict[int, int] = field(default_factory=dict)
    root: Branch | int = 0

    def add(self, name: str, kind: str, parameters: int, buffers: int, layer: int) -> int:
        """Append a part; return its number."""
        self.names.append(name)
        self.kinds.append(kind)
        self.parameters.append(parameters)
        self.buffers.append(buffers)
        self.layers.append(layer)
        return len(self.names) - 1

    @property
    def weights(self) -> int:
        """Return the bytes of everything."""
        return sum(self.parameters) + sum(self.buffers)

    def groups(self) -> list[list[int]]:
        """Return the parts that must lie together, by the first of each group; most are alone."""
        if not self.links:
            return [[number] for number in range(len(self.names))]
        roots = list(range(len(self.names)))

        def root(number: int) -> int:
            while roots[number] != number:
                roots[number] = roots[roots[number]]
                number = roots[number]
            return number

        for one, other in self.links:
            low, high = sorted((root(one), root(other)))
            roots[high] = low
        found: dict[int, list[int]] = {}
        for number in range(len(roots)):
            found.setdefault(root(number), []).append(number)
        return list(found.values())

    def columns(self, groups: Iterable[Sequence[int]], *, offload_buffers: bool) -> Columns:
        """Return what each of ``groups`` needs, wherever it lies."""
        if not self.links and not self.caches:
            together = [one + other for one, other in zip(self.parameters, self.buffers, strict=True)]
            if offload_buffers:
                return Columns(together, together, [0] * len(together), together)
            return Columns(together, self.parameters, self.buffers, self.layers)
        resident, stored, left, layer = [], [], [], []
        for group in groups:
            parameters = buffers = cache = most = 0
            for number in group:
                parameters += self.parameters[number]
                buffers += self.buffers[number]
                cache += self.caches.get(number, 0)
                moved = self.layers[number] + (self.buffers[number] if offload_buffers else 0)
                most = max(most, moved)
            resident.append(parameters + buffers + cache)
            stored.append(parameters + (buffers if offload_buffers else 0))
            left.append(cache + (0 if offload_buffers else buffers))
            layer.append(most)
        return Columns(resident, stored, left, layer)

    def device_map(self, devices: Sequence[Device], *, merged: bool) -> dict[str, Device]:
        """Return ``devices``, one for each part, by name; ``merged``: of whole modules where they can be."""
        if not merged:
            return dict(zip(self.names, devices, strict=True))
        ends = list(range(1, len(devices) + 1))
        for number in range(len(devices) - 2, -1, -1):
            if devices[number] == devices[number + 1]:
                ends[number] = ends[number + 1]
        found: dict[str, Device] = {}
        waiting: list[Branch | int] = [self.root] if self.names else []
        while waiting:
            item = waiting.pop()
            if isinstance(item, int):
                found[self.names[item]] = devices[item]
            elif item.first < item.last <= ends[item.first]:
                found[item.name] = devices[item.first]
            else:
                waiting.extend(reversed(item.items))
        return found


@dataclass(slots=True)
class Columns:
    """What groups of parts need: ``resident`` where they run; when offloaded, ``stored`` where they are kept.

    Offloaded, they leave ``left`` on the device that runs them, and take ``layer`` there for a while.
    """

    resident: list[int]
    stored: list[int]
    left: list[int]
    layer: list[int]

    def totals(self) -> Totals:
        """Return the sums that make filling a device one look-up."""
        most = list(accumulate(reversed(self.layer), max, initial=0))[::-1]
        rest = list(accumulate(reversed(self.left), initial=0))[::-1]
        return Totals(
            list(accumulate(self.resident, initial=0)),
            list(accumulate(self.stored, initial=0)),
            [one + other for one, other in zip(most, rest, strict=True)],
        )


@dataclass(slots=True)
class Totals:
    """Sums over groups from the front; ``demand``: what offloading all from one on needs where they run."""

    resident: list[int]
    stored: list[int]
    demand: list[int]


def merged_map(device_map: Mapping[str, Device]) -> dict[str, Device]:
    """Return the shortest map that says the same: modules whose named parts lie together, by their name."""
    root: dict[str, Any] = {}
    for name in device_map:
        place = root
        for part in name.split(".") if name else ():
            place = place.setdefault(part, {})
    if device_map and "" in device_map:
        return _pruned(device_map)
    return _merged(root, "", device_map)[0]


def _pruned(device_map: Mapping[str, Device]) -> dict[str, Device]:
    same = all(device == device_map[""] for device in device_map.values())
    return {"": device_map[""]} if same else dict(device_map)


def _merged(
    place: Mapping[str, Any], name: str, devices: Mapping[str, Device]
) -> tuple[dict[str, Device], int]:
    """Return the map of what is under ``name``, and how many names it stands for."""
    found: dict[str, Device] = {name: devices[name]} if name in devices else {}
    count = len(found)
    for part, inner in place.items():
        more, names = _merged(inner, f"{name}.{part}" if name else part, devices)
        found.update(more)
        count += names
    values = list(found.values())
    if count > 1 and all(value == values[0] for value in values):
        return {name: values[0]}, count
    return found, count


__all__ = ["Branch", "Columns", "Outline", "Totals", "merged_map"]
