"""A plan: where everything lies, how full each device is, and why; without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Share:
    """What a plan puts on a device, in bytes. ``limit``: None where there is none.

    ``caches``: what parts keep there while the model is in use. ``workspace``: kept free for results on the
    way. ``visitors``: kept free for offloaded layers while they run, with what those leave behind.
    """

    device: int | str
    limit: int | None
    weights: int
    caches: int
    workspace: int
    visitors: int
    parts: int

    @property
    def reserved(self) -> int:
        """Return the bytes that are kept for other things than weights."""
        return self.caches + self.workspace + self.visitors

    @property
    def free(self) -> int | None:
        """Return the bytes that nothing has a claim on; None without a limit."""
        return None if self.limit is None else self.limit - self.weights - self.reserved


@dataclass(frozen=True, slots=True)
class Row:
    """Neighbours that lie on one device: ``count`` of them, from ``first`` to ``last``, and why there."""

    first: str
    last: str
    count: int
    bytes: int
    device: int | str
    why: str

    @property
    def name(self) -> str:
        """Return a name for all of them."""
        if self.count == 1:
            return self.first or "the whole model"
        return f"{self.first} to {self.last.rpartition('.')[2]} ({self.count})"


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """A device map with its reasons. ``device_map`` is what `dispatch_model` takes.

    ``main_device``: what runs offloaded parts. ``notes``: what was assumed, and what to know.
    """

    strategy: str
    device_map: Mapping[str, int | str]
    main_device: int | str
    shares: tuple[Share, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def offloaded(self) -> int:
        """Return the bytes that lie elsewhere than where they run."""
        homes = {"cpu", "disk"} - {self.main_device}
        return sum(share.weights for share in self.shares if share.device in homes)

    def explain(self) -> str:
        """Return tables of devices and of parts, with the reason for each place."""
        from .explaining import explained

        return explained(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, for programs; sizes in bytes."""
        shares = [{**asdict(share), "reserved": share.reserved, "free": share.free} for share in self.shares]
        return {
            "strategy": self.strategy,
            "device_map": dict(self.device_map),
            "main_device": self.main_device,
            "devices": shares,
            "parts": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(self.as_dict(), indent=2)


__all__ = ["DevicePlan", "Row", "Share"]
