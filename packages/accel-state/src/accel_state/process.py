"""Who am I: the one immutable state of this process, set up once.

`start` decides the hardware, joins the other ranks and remembers the result; everything else in
this package is a view over it. A process group is made only when there is somebody to talk to, and
only the one made here is destroyed here.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.utils.data import get_worker_info

from accel_core.enums import DistributedType
from accel_core.environment import RunConfig
from accel_core.errors import CapabilityError, ConfigError, Fault, StateError
from accel_core.logging import RankInfo, set_rank_source
from accel_core.protocols import LonelyCollectives
from accel_core.settling import let_threads_rest
from accel_core.topology import Topology

from .collectives import NoCollectives, TorchCollectives
from .devices.base import too_many
from .devices.choose import detect, hardware_of
from .joining import backend_for, join

if TYPE_CHECKING:
    from accel_core.protocols import Collectives, Device


@dataclass(frozen=True, slots=True)
class ProcessState:
    """This process among the others: its place, its hardware, and how it talks to them."""

    topology: Topology
    device: torch.device
    hardware: Device
    collectives: Collectives
    backend: str | None
    """What the process group was made with; None when there is no group."""
    timeout: timedelta | None
    """The effective timeout of one collective, read back from the group; None when there is no group."""
    distributed_type: DistributedType
    debug: bool = False
    """Whether ranks compare what they do before every collective."""
    fork_launched: bool = False
    """Whether a launcher for functions started this process."""
    init_method: str | None = None
    owns_group: bool = False
    """Whether `start` made the process group; one that the user made is never destroyed here."""


DEBUG_PATIENCE = 60.0
"""Seconds that a rank waits for the others in debug mode, unless ACCELERATE_DEBUG_TIMEOUT says otherwise."""
_NO_PATIENCE = 0.1
"""A shorter wait would take a rank for missing that is on its way."""
_ADOPTED = "torch.distributed"
"""The source of a topology that the user's process group decided."""

_current: ProcessState | None = None
_owner = 0
"""The process that made the state; a forked child inherits the state, but may be another rank."""
_forgetters: list[Callable[[], None]] = []


def current() -> ProcessState | None:
    """Return the state of this process, or None before `start`."""
    return _current


def chosen_hardware() -> Device:
    """Return the hardware this process computes on, or would after `start` without arguments."""
    return _current.hardware if _current is not None else _hardware(_named_in(RunConfig.from_environ()))


def start(
    *,
    cpu: bool = False,
    device: str | torch.device | None = None,
    backend: str | None = None,
    timeout: timedelta | None = None,
    init_method: str | None = None,
) -> ProcessState:
    """Set this process up once and return its state; the same set-up again returns the same object.

    ``cpu``: compute on the CPU whatever else is there. ``device``: a kind of hardware by its torch
    name. ``backend``, ``timeout``, ``init_method``: as in ``torch.distributed.init_process_group``;
    what is not given is decided by the hardware and the environment. A process group that exists
    already is adopted.

    Raises StateError when the process was set up before in another way, CapabilityError when the
    hardware or backend cannot be used or there are more processes than devices, CollectiveError
    when the ranks do not find each other in time.
    """
    global _current, _owner
    _check(backend, timeout)
    asked = torch.device(device) if device is not None else None
    if cpu and asked is not None and asked.type != "cpu":
        raise ConfigError(
            "process state", [Fault("device", str(device), "contradicts cpu=True", "pass one of them")]
        )
    if cpu:
        asked = torch.device("cpu")
    if _current is not None and not _forked_away(_current):
        _same_or_raise(_current, asked, backend, timeout, init_method)
        return _current
    settings = RunConfig.from_environ()
    topology = Topology.detect()
    asked = asked or _named_in(settings)
    hardware = _hardware(asked)
    if dist.is_available() and dist.is_initialized():
        made = _adopt(_as_the_group_says(topology), hardware, asked, backend, timeout)
    elif get_worker_info() is not None:
        made = _beside(topology)
    elif topology.world_size == 1:
        made = _alone(topology, hardware, asked)
    else:
        made = _together(topology, hardware, asked, backend, timeout, init_method)
    if settings.debug:
        made = _checked(made, settings.debug_timeout)
    _current = replace(made, debug=bool(settings.debug), fork_launched=bool(settings.fork_launched))
    _owner = os.getpid()
    set_rank_source(_rank_info)
    if settings.cpu_affinity and get_worker_info() is None:  # a loader's worker has its parent's cores
        from .affinity import set_numa_affinity

        set_numa_affinity(_current.topology.local_rank)
    return _current


def shutdown() -> None:
    """Leave the process group when `start` made it; the rest of the state stays readable."""
    if _current is None or not _current.owns_group:
        return
    _stop_comparing()
    # Asked by what they have: the classes of debug mode are imported in debug mode only.
    close = getattr(_current.collectives, "close", None)
    if close is not None:
        close()
    if dist.is_initialized():
        let_threads_rest()
        dist.destroy_process_group()


def reset() -> None:
    """Leave the group and forget the state and all views of it, so that this process can be set up anew."""
    global _current
    shutdown()
    _stop_comparing()
    _current = None
    for forget in _forgetters:
        forget()


def at_reset(forget: Callable[[], None]) -> None:
    """Have `reset` call ``forget``; for modules that keep something about the process."""
    _forgetters.append(forget)


def _leave() -> None:
    """Destroy our group when the program ends; torch warns about one that nobody destroyed."""
    _stop_comparing(for_good=True)
    # Not after an error: destroying can wait for ranks that will never do the same.
    if not hasattr(sys, "last_value"):
        shutdown()


def _stop_comparing(*, for_good: bool = False) -> None:
    """Tell ranks that wait in debug mode that this one has left."""
    board = None if _current is None else getattr(_current.collectives, "board", None)
    if board is not None:
        board.close(for_good=for_good)


atexit.register(_leave)


# -- the three ways to come to a state ---------------------------------------------------------------


def _alone(topology: Topology, hardware: Device, asked: torch.device | None) -> ProcessState:
    return ProcessState(
        topology=topology,
        device=_select(topology, hardware, asked),
        hardware=hardware,
        collectives=LonelyCollectives(),
        backend=None,
        timeout=None,
        distributed_type=DistributedType.NO,
    )


def _beside(topology: Topology) -> ProcessState:
    """Return the state of a DataLoader's worker, which has its parent's variables but is no rank."""
    reason = "A worker process of a DataLoader takes no part in the exchange between ranks"
    hardware = hardware_of("cpu")
    return ProcessState(
        topology=topology,
        device=hardware.select(0),
        hardware=hardware,
        collectives=NoCollectives(
            topology.rank, topology.world_size, reason, "exchange in the training loop, not in the data set"
        ),
        backend=None,
        timeout=None,
        distributed_type=DistributedType(hardware.distributed_label if topology.world_size > 1 else "NO"),
    )


def _forked_away(state: ProcessState) -> bool:
    """Tell whether ``state`` is that of a parent process and this child is a rank of its own.

    A notebook does this: it looks at its state, then forks the ranks. Raises StateError when the
    parent is in a group, whose connections a child cannot share.
    """
    if os.getpid() == _owner or get_worker_info() is not None:
        return False
    if state.topology.source == _ADOPTED or Topology.detect() == state.topology:
        return False
    if state.backend is None:
        return True
    raise StateError(
        "This process was forked from one that is in a process group already",
        where=f"process {os.getpid()}, forked from {_owner}, rank {state.topology.rank}",
        fix="fork before PartialState or Accelerator is made, or use the spawn start method",
    )


def _adopt(
    topology: Topology,
    hardware: Device,
    asked: torch.device | None,
    backend: str | None,
    timeout: timedelta | None,
) -> ProcessState:
    state = _in_group(topology, hardware, _select(topology, hardware, asked), str(dist.get_backend()))
    _same_or_raise(state, None, backend, timeout, None)
    return state


def _together(
    topology: Topology,
    hardware: Device,
    asked: torch.device | None,
    backend: str | None,
    timeout: timedelta | None,
    init_method: str | None,
) -> ProcessState:
    # Asked on every rank before any rank waits: otherwise those with a device would hang for those without.
    if not hardware.supports("sharing") and topology.local_world_size > hardware.count():
        variable = str(getattr(hardware, "visible_variable", ""))
        raise too_many(hardware.name, topology.local_world_size, hardware.count(), variable)
    spec = backend_for(hardware, backend)
    chosen = _select(topology, hardware, asked)
    join(topology, spec, timeout, init_method)
    state = _in_group(topology, hardware, chosen, spec)
    # Where torch does not tell a group's timeout, it is the one the group was made with.
    applied = state.timeout or timeout
    state = replace(state, timeout=applied, init_method=init_method, owns_group=True)
    # Rank 0 may keep the store in which the others look for it: it must not run on, end, and take it away.
    state.collectives.barrier()
    return state


def _in_group(topology: Topology, hardware: Device, chosen: torch.device, spec: str) -> ProcessState:
    collectives = TorchCollectives(device=chosen)
    return ProcessState(
        topology=topology,
        device=chosen,
        hardware=hardware,
        collectives=collectives,
        backend=spec,
        timeout=collectives.timeout,
        distributed_type=DistributedType(hardware.distributed_label if topology.world_size > 1 else "NO"),
    )


def _checked(state: ProcessState, patience: float | None) -> ProcessState:
    """Return the state with collectives that compare what the ranks do before they do it."""
    if not isinstance(state.collectives, TorchCollectives) or state.topology.world_size == 1:
        return state
    from .board import open_board
    from .checked import CheckedCollectives

    patience = DEBUG_PATIENCE if patience is None else max(patience, _NO_PATIENCE)
    board = open_board(state.topology.rank, state.topology.world_size, patience)
    return replace(state, collectives=CheckedCollectives(state.collectives, board))


def _select(topology: Topology, hardware: Device, asked: torch.device | None) -> torch.device:
    """Make the device asked for by number, else that of the local rank, the current one."""
    index = asked.index if asked is not None and asked.index is not None else topology.local_rank
    return hardware.select(index)


# -- checks ------------------------------------------------------------------------------------------


def _check(backend: object, timeout: object) -> None:
    faults = []
    if timeout is not None and (not isinstance(timeout, timedelta) or timeout <= timedelta(0)):
        faults.append(Fault("timeout", timeout, "must be a positive datetime.timedelta"))
    if backend is not None and not isinstance(backend, str):
        faults.append(Fault("backend", backend, "must be the name of a backend"))
    if faults:
        raise ConfigError("process state", faults)


def _same_or_raise(
    state: ProcessState,
    asked: torch.device | None,
    backend: str | None,
    timeout: timedelta | None,
    init_method: str | None,
) -> None:
    """Raise StateError naming every setting that is given and differs from how the process was set up."""
    differing: list[str] = []
    if asked is not None and (
        asked.type != state.device.type or (asked.index is not None and asked.index != state.device.index)
    ):
        differing.append(f"device: set up on {state.device}, asked for {asked}")
    if state.backend is not None:
        spelled = backend_for(state.hardware, backend) if backend is not None else state.backend
        if spelled != state.backend:
            differing.append(f"backend: set up with {state.backend}, asked for {spelled}")
        if timeout is not None and timeout != state.timeout:
            differing.append(f"timeout: the group applies {state.timeout}, asked for {timeout}")
        if init_method is not None and init_method != state.init_method:
            differing.append(f"init_method: set up with {state.init_method}, asked for {init_method}")
    if differing:
        raise StateError(
            "This process was set up before in another way: " + "; ".join(differing),
            where=f"rank {state.topology.rank} of {state.topology.world_size}",
            fix="pass these settings to the first PartialState or Accelerator of the process; "
            "a test can start over with accel_state.process.reset()",
        )


def _named_in(settings: RunConfig) -> torch.device | None:
    """Return the device that the environment names (``ACCELERATE_USE_CPU``, ``ACCELERATE_TORCH_DEVICE``)."""
    if settings.cpu:
        return torch.device("cpu")
    if not settings.torch_device:
        return None
    try:
        return torch.device(settings.torch_device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        fault = Fault("ACCELERATE_TORCH_DEVICE", settings.torch_device, reason, "name one such as cuda:1")
        raise ConfigError("environment", [fault]) from error


def _hardware(asked: torch.device | None) -> Device:
    hardware = hardware_of(asked.type) if asked is not None else detect()
    answer = hardware.available()
    if not answer:
        raise CapabilityError(f"The device {hardware.name!r} cannot be used: {answer.reason}")
    return hardware


def _as_the_group_says(topology: Topology) -> Topology:
    """Return the topology with rank and size of the user's group, which are right by definition."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if (topology.rank, topology.world_size) == (rank, world_size):
        return topology
    # The environment says something else (often nothing): then all ranks are taken to share this machine,
    # unless it names the local rank.
    local: dict[str, Any] = {
        "local_rank": rank,
        "local_world_size": world_size,
        "node_rank": 0,
        "num_nodes": 1,
    }
    return replace(topology, rank=rank, world_size=world_size, source=_ADOPTED, **local)


def _rank_info() -> RankInfo | None:
    """Answer loggers, which ask again for every message."""
    state = _current
    if state is None:
        return None
    place = state.topology
    return RankInfo(place.rank, place.local_rank, state.collectives.barrier, place.world_size)


__all__ = ["ProcessState", "at_reset", "chosen_hardware", "current", "reset", "shutdown", "start"]
