"""From a solution to a plan: neighbours in one row, with the reason why they lie where they do."""

from __future__ import annotations

from collections.abc import Sequence

from .outline import Branch, Outline
from .packing import DISK, HOST
from .plan import DevicePlan, Row, Share
from .solving import CPU, KEEPERS, ON_DISK, Solution, runners_of
from .units import shown


def plan_of(solution: Solution, strategy: str, notes: Sequence[str] = ()) -> DevicePlan:
    """Return what ``solution`` says, for people and programs."""
    shares = tuple(_shares(solution))
    return DevicePlan(
        strategy,
        solution.device_map(),
        solution.main,
        shares,
        tuple(_rows(solution, {share.device: share for share in shares})),
        (*notes, *_notes(solution, shares)),
    )


def _shares(solution: Solution) -> list[Share]:
    """Return a share for each device of the limits, and for the disk when it is used."""
    columns, packing, outline = solution.columns, solution.packing, solution.outline
    order = [key for key in solution.limits if key != ON_DISK]
    codes = {**{key: number for number, key in enumerate(runners_of(order))}, CPU: HOST, ON_DISK: DISK}
    found = []
    for device in [*order, ON_DISK]:
        groups = [group for group, place in enumerate(packing.places) if place == codes[device]]
        parts = sum(len(solution.groups[group]) for group in groups)
        runs = _runs(solution, device)
        kept = columns.resident if runs else columns.stored
        total = sum(kept[group] for group in groups)
        caches = 0
        if runs:
            caches = sum(outline.caches.get(part, 0) for group in groups for part in solution.groups[group])
        visitors = packing.demand if device == solution.main else 0
        workspace = solution.workspace if runs and (parts or visitors) else 0
        if device != ON_DISK or parts or ON_DISK in solution.limits:
            limit = solution.limits.get(device)
            found.append(Share(device, limit, total - caches, caches, workspace, visitors, parts))
    return found


def _rows(solution: Solution, shares: dict[int | str, Share]) -> list[Row]:
    outline, devices = solution.outline, solution.devices
    first_of = {part: group[0] for group in solution.groups if len(group) > 1 for part in group[1:]}
    rows: list[Row] = []
    parents: list[str] = []
    before: int | str | None = None
    for name, first, last in _items(outline, devices):
        device = devices[first]
        size = sum(outline.parameters[first:last]) + sum(outline.buffers[first:last])
        parent, _, key = name.rpartition(".")
        tied = first_of.get(first) if last == first + 1 else None
        if tied is not None and devices[tied] == device != before:
            rows.append(Row(name, name, 1, size, device, f"shares a parameter with {outline.names[tied]}"))
            parents.append("")
            continue
        if rows and key.isdigit() and parents[-1] == f"{parent}." and rows[-1].device == device:
            old = rows[-1]
            rows[-1] = Row(old.first, name, old.count + 1, old.bytes + size, device, old.why)
        else:
            why = "" if device == before else _why(solution, shares, before, first)
            rows.append(Row(name, name, 1, size, device, why))
            parents.append(f"{parent}." if key.isdigit() else "")
        before = device
    return rows


def _why(solution: Solution, shares: dict[int | str, Share], before: int | str | None, part: int) -> str:
    """Return why ``part`` lies where it does, and not on the device ``before``, where the last one does."""
    device = solution.devices[part]
    group = next(number for number, parts in enumerate(solution.groups) if part in parts)
    order = [*solution.limits, *([] if ON_DISK in solution.limits else [ON_DISK])]
    start = 0 if before is None else order.index(before)
    reasons = [
        _passed(solution, shares[passed], group, part) for passed in order[start : order.index(device)]
    ]
    if not reasons:
        return "in the order of the model"
    moved = f"; visits {solution.main} to run" if device in KEEPERS and device != solution.main else ""
    return ", ".join(reasons) + moved


def _passed(solution: Solution, share: Share, group: int, part: int) -> str:
    """Return why a device that comes earlier does not hold ``part``."""
    device = share.device
    limit, wanted = solution.limits[device], solution.shares[device]
    if wanted < limit:
        return f"{device} has its share" if share.parts else f"{device} is kept free"
    runs = _runs(solution, device)
    size = (solution.columns.resident if runs else solution.columns.stored)[group]
    text = f"{solution.outline.names[part]} needs {shown(size)}"
    free = share.free or 0
    if not share.parts and runs:
        # Nothing is reserved where nothing runs; there would have to be.
        free -= solution.workspace
        if size <= free:
            return f"{text}, and {device} has no room for it beside what is offloaded"
    return f"{text}, {device} has {shown(max(0, free))} left"


def _runs(solution: Solution, device: int | str) -> bool:
    return device not in KEEPERS or (device == CPU and solution.main == CPU)


def _items(outline: Outline, devices: Sequence[int | str]) -> list[tuple[str, int, int]]:
    """Return names with their first part and the end, in order: blocks, and whole modules beside them."""
    found: list[tuple[str, int, int]] = []
    waiting: list[Branch | int] = [outline.root] if outline.names else []
    while waiting:
        item = waiting.pop()
        if isinstance(item, int):
            found.append((outline.names[item], item, item + 1))
        elif item.first == item.last:
            continue
        elif len(set(devices[item.first : item.last])) > 1 or not item.name or has_blocks(outline, item):
            waiting.extend(reversed(item.items))
        else:
            found.append((item.name, item.first, item.last))
    return found


def has_blocks(outline: Outline, item: Branch | int) -> bool:
    """Tell whether a module holds a list of modules, itself or further down, and is none of such a list."""
    if isinstance(item, int) or item.name.rpartition(".")[2].isdigit():
        return False
    return len(numbered(outline, item)) > 1 or any(has_blocks(outline, inner) for inner in item.items)


def numbered(outline: Outline, branch: Branch) -> list[Branch | int]:
    """Return what lies in ``branch`` under numbers."""
    return [item for item in branch.items if name_of(outline, item).rpartition(".")[2].isdigit()]


def name_of(outline: Outline, item: Branch | int) -> str:
    """Return the name of a part or branch."""
    return outline.names[item] if isinstance(item, int) else item.name


def _notes(solution: Solution, shares: Sequence[Share]) -> list[str]:
    outline, packing = solution.outline, solution.packing
    notes = []
    if packing.demand:
        away = [group for group, place in enumerate(packing.places) if place in {HOST, DISK}]
        if solution.main == CPU:
            away = [group for group in away if packing.places[group] == DISK]
        most = max(away, key=lambda group: solution.columns.layer[group])
        part = max(solution.groups[most], key=lambda part: outline.layers[part])
        layer = solution.columns.layer[most]
        rest = packing.demand - layer
        text = f"{shown(layer)} stay free on {solution.main} for the largest offloaded layer,"
        text += f" {outline.names[part] or 'the whole model'}"
        if rest > 0:
            text += f", and {shown(rest)} for the buffers and caches of offloaded layers"
        notes.append(text + ".")
    unused = [
        share
        for share in shares
        if share.device not in KEEPERS and not share.parts and solution.shares[share.device] == share.limit
    ]
    if unused and {ON_DISK, CPU} & set(solution.devices):
        named = ", ".join(str(share.device) for share in unused)
        notes.append(
            f"Nothing lies on {named}: too small for the next part of the model beside the largest offloaded"
            " layer and what else is reserved. Smaller parts that come later: see fallback_allocation."
        )
    short = _shortage(solution, shares)
    if short:
        notes.append(short)
    return notes


def _shortage(solution: Solution, shares: Sequence[Share]) -> str:
    """Return how much memory would hold the whole model where it runs."""
    runners = [share for share in shares if share.device not in KEEPERS]
    if not runners:
        runners = [share for share in shares if share.device == CPU]
    missing = sum(solution.columns.resident) - sum(
        max(0, (share.limit or 0) - solution.workspace) for share in runners
    )
    if missing > 0:
        devices = ", ".join(str(share.device) for share in runners) or "no device"
        return f"{shown(missing)} more on {devices} would hold the whole model, if parts filled them exactly."
    return ""


__all__ = ["has_blocks", "name_of", "numbered", "plan_of"]
