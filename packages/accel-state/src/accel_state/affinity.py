"""Bind a process to the CPU cores nearest to its device, as Linux shows them under ``/sys``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from accel_core.errors import CapabilityError, ConfigError, Fault
from accel_core.logging import get_logger

from . import process

if TYPE_CHECKING:
    from accel_core.protocols import Device

logger = get_logger(__name__)

_NODES = Path("/sys/devices/system/node")
_DEVICES = Path("/sys/bus/pci/devices")
_bound: dict[int, frozenset[int]] = {}
"""The cores that `set_numa_affinity` chose, by local rank; a process asks once."""


process.at_reset(_bound.clear)


def set_numa_affinity(local_process_index: int, verbose: bool | None = None) -> None:
    """Bind this process to the cores nearest to the device of local rank ``local_process_index``, once.

    A second call for the same rank changes nothing; `override_numa_affinity` binds again. ``verbose``
    logs the cores; by default they are logged in debug mode. Raises as `override_numa_affinity`.
    """
    if local_process_index not in _bound:
        override_numa_affinity(local_process_index, verbose)


def override_numa_affinity(local_process_index: int, verbose: bool | None = None) -> None:
    """Bind this process to the cores nearest to the device of local rank ``local_process_index``.

    Of the cores that the process may use now, those of the memory node (NUMA) that the device hangs
    on remain; processes that compute on the CPU take the nodes in turn. On a machine with one node
    nothing changes. Raises CapabilityError where the system has no such binding, where it does not
    tell the device's node, or where the process may use none of that node's cores.
    """
    if not isinstance(local_process_index, int) or local_process_index < 0:
        fault = Fault("local_process_index", local_process_index, "must be a whole number from 0")
        raise ConfigError("set_numa_affinity", [fault])
    if not hasattr(os, "sched_setaffinity"):
        raise CapabilityError("This operating system does not bind processes to cores", fix="leave it out")
    nodes = _nodes()
    allowed = frozenset(os.sched_getaffinity(0))
    if len(nodes) < 2:
        chosen, reason = allowed, "this machine has one memory node"
    else:
        node = _node_of(process.chosen_hardware(), local_process_index, sorted(nodes))
        chosen, reason = allowed & nodes[node], f"memory node {node}"
        if not chosen:
            raise CapabilityError(
                f"The cores near the device of local rank {local_process_index} are not for this process",
                where=f"memory node {node} has {_written(nodes[node])}, allowed are {_written(allowed)}",
                fix="give the job cores of every node, or leave CPU affinity out",
            )
        os.sched_setaffinity(0, chosen)
    _bound[local_process_index] = chosen
    state = process.current()
    if verbose or (verbose is None and state is not None and state.debug):
        logger.info(
            "Local rank %d runs on cores %s (%s)", local_process_index, _written(chosen), reason,
            main_process_only=False,
        )  # fmt: skip


def _nodes() -> dict[int, frozenset[int]]:
    """Return the cores of each memory node that has some."""
    found = {}
    for folder in _NODES.glob("node[0-9]*"):
        cores = read_cores((folder / "cpulist").read_text(encoding="ascii"))
        if cores:
            found[int(folder.name.removeprefix("node"))] = cores
    return found


def _node_of(hardware: Device, index: int, nodes: list[int]) -> int:
    address = getattr(hardware, "pci_address", None)
    if address is None:
        if hardware.supports("sharing"):
            return nodes[index % len(nodes)]
        raise CapabilityError(
            f"Where in the machine a device of kind {hardware.name!r} sits is not known",
            fix="leave CPU affinity out, or bind the processes with numactl",
        )
    place = address(index)
    try:
        node = int((_DEVICES / place / "numa_node").read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise CapabilityError(
            f"The system does not tell the memory node of the device at {place}: {error}",
            fix="leave CPU affinity out",
        ) from error
    if node not in nodes:
        raise CapabilityError(
            f"The device at {place} belongs to no memory node with cores (the system says {node})",
            fix="leave CPU affinity out, or bind the processes with numactl",
        )
    return node


def read_cores(text: str) -> frozenset[int]:
    """Return the numbers in a list such as ``0-3,8,10-11``, the way Linux writes cores."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cores.update(range(int(first), int(last or first) + 1))
    return frozenset(cores)


def _written(cores: frozenset[int]) -> str:
    return ",".join(map(str, sorted(cores)))


__all__ = ["override_numa_affinity", "read_cores", "set_numa_affinity"]
