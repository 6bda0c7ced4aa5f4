"""Plans in words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .plan import DevicePlan, Share
from .units import shown

_WIDTH = 100
_DEVICES = ("DEVICE", "LIMIT", "WEIGHTS", "RESERVED", "FREE", "FULL")
_PARTS = ("PART", "SIZE", "ON", "WHY")


def explained(plan: DevicePlan, width: int = _WIDTH) -> str:
    """Return the tables and notes of a plan, at most ``width`` wide where names allow."""
    lines = aligned(_DEVICES, [_device(share) for share in plan.shares], right={1, 2, 3, 4, 5})
    lines.append("")
    rows = [(row.name, shown(row.bytes), str(row.device), row.why) for row in plan.rows]
    lines += aligned(_PARTS, rows, right={1}, width=width)
    if plan.notes:
        lines.append("")
    for note in plan.notes:
        lines += textwrap.wrap(note, width, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(lines)


def _device(share: Share) -> tuple[str, ...]:
    if share.limit is None:
        return (str(share.device), "none", shown(share.weights), shown(share.reserved), "-", "-")
    used = share.weights + share.reserved
    full = "-" if not share.limit else f"{100 * used / share.limit:.0f} %"
    return (
        str(share.device),
        shown(share.limit),
        shown(share.weights),
        shown(share.reserved),
        shown(share.limit - used),
        full,
    )


def aligned(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: set[int], width: int = 0
) -> list[str]:
    """Return lines of columns; those numbered in ``right`` end together. The last is wrapped at ``width``."""
    table = [titles, *rows]
    last = len(titles) - 1
    widths = [max(len(row[column]) for row in table) for column in range(last + 1)]
    start = sum(widths[:last]) + 2 * last
    lines = []
    for row in table:
        cells = [
            text.rjust(widths[column]) if column in right else text.ljust(widths[column])
            for column, text in enumerate(row)
        ]
        head = "  ".join(cells[:last])
        room = max(width - start, 24)
        tail = textwrap.wrap(row[last], room) if width and len(row[last]) > room else [cells[last]]
        lines.append(f"{head}  {tail[0]}".rstrip())
        lines += [" " * start + more for more in tail[1:]]
    return lines


__all__ = ["aligned", "explained"]
