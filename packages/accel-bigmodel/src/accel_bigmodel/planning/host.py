"""How much memory of the host this process may still take; without torch."""

from __future__ import annotations

from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def host_memory() -> int:
    """Return the bytes that are free on the host, and that the container of this process leaves it."""
    free = int(psutil.virtual_memory().available)
    return max(0, min([free, *container_rooms()]))


def container_rooms(root: Path = _ROOT, own: Path = _OWN) -> list[int]:
    """Return the bytes that each limit on a control group around this process leaves; none without limits.

    Pages of files that nobody has used for a while count as free: the kernel gives them back when asked.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/memory.html
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    rooms = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            rooms += _rooms(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            rooms += _rooms(root / "memory", path, *names)
    return rooms


def _rooms(root: Path, path: str, limit: str, usage: str, inactive: str) -> list[int]:
    """Return what every group from ``path`` up to ``root`` leaves."""
    folder = root / path.strip("/")
    # In a container of its own namespace the path may lead out; its root is then its own group.
    inner = folder if folder.is_relative_to(root) and folder.is_dir() and ".." not in path else root
    found = []
    for place in [inner, *inner.parents]:
        most, used = _number(place / limit), _number(place / usage)
        # Version 1 writes nearly 2**63 where there is no limit.
        if most is not None and used is not None and most < 1 << 60:
            found.append(most - max(0, used - _cache(place / "memory.stat", inactive)))
        if place == root:
            break
    return found


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _cache(file: Path, key: str) -> int:
    try:
        words = (line.split() for line in file.read_text().splitlines())
        return next((int(line[1]) for line in words if len(line) == 2 and line[0] == key), 0)
    except (OSError, ValueError):
        return 0


__all__ = ["container_rooms", "host_memory"]
