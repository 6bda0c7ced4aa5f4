"""Ports for rendezvous that no two calls, and no two test sessions of one user, share.

They lie below the range from which the system takes the ports of outgoing connections: gloo opens
many of those, and one of them could otherwise take a port between our look and its use.
"""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import IO, ClassVar

from accel_core.errors import CapabilityError

from .owned import own

LOWEST = 20_000
BLOCK = 200
"""Ports that one session claims; they are used in turn, so one is free again long before its next use."""


def _highest() -> int:
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        low = 32_768
    return low if low >= LOWEST + BLOCK else 65_000


class PortBlock:
    """A block of ports, held by a lock on a file for the life of this process."""

    _mine: ClassVar[PortBlock | None] = None

    def __init__(self) -> None:
        self.first, self._lock = _claim()
        self.pid = os.getpid()
        self._next = 0

    @classmethod
    def mine(cls) -> PortBlock:
        """Return this process's block; a forked child claims its own."""
        block = cls._mine
        if block is None or block.pid != os.getpid():
            block = cls._mine = cls()
        return block

    def take(self) -> int:
        """Return the next port of the block on which nobody listens."""
        for _ in range(BLOCK):
            port = self.first + self._next
            self._next = (self._next + 1) % BLOCK
            if _unused(port):
                return port
        raise CapabilityError(
            f"All ports from {self.first} to {self.first + BLOCK - 1} are in use",
            fix="end what listens on them",
        )


def _claim() -> tuple[int, IO[str] | None]:
    """Lock one block against other sessions; without file locks, take the one of the process id."""
    blocks = (_highest() - LOWEST) // BLOCK
    start = os.getpid() % blocks
    try:
        import fcntl
    except ImportError:
        return LOWEST + start * BLOCK, None
    owner = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"accel-testing-ports-{owner}"
    folder.mkdir(exist_ok=True)
    for number in range(blocks):
        block = (start + number) % blocks
        lock = (folder / str(block)).open("w", encoding="ascii")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        own(lock.fileno())
        return LOWEST + block * BLOCK, lock
    raise CapabilityError(f"All {blocks} blocks of ports are claimed", fix=f"end test sessions, see {folder}")


def _unused(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the store that will listen here does: a port whose last connection lingers is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """Return a TCP port that nobody listens on and that no other call returned recently."""
    return PortBlock.mine().take()


__all__ = ["PortBlock", "free_port"]
