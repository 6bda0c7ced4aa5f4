"""How the ranks find each other: which backend, at which address, and what is said when they do not."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from accel_core.errors import CapabilityError, CollectiveError
from accel_core.topology import Topology

from .devices.choose import hardware_of

if TYPE_CHECKING:
    from accel_core.protocols import Device


_PATIENCE = timedelta(minutes=30)
"""What torch waits for ranks by default."""


def join(topology: Topology, spec: str, timeout: timedelta | None, init_method: str | None) -> None:
    """Make the default process group; raise CollectiveError when the ranks do not find each other in time."""
    # Functions there keep the group that is there when they are imported, as their default; DDP imports them.
    # A group that is kept is never left: gloo's connections and threads stay.
    importlib.import_module("torch.distributed.nn.functional")
    place = f"rank {topology.rank} of {topology.world_size}"
    url = init_method or rendezvous(topology)
    try:
        store = again(timeout) if url == "env://" else None
        where = {"init_method": url} if store is None else {"store": store}
        dist.init_process_group(
            spec, timeout=timeout, rank=topology.rank, world_size=topology.world_size, **where
        )
    except (RuntimeError, ValueError) as error:
        if not dist.is_initialized():
            # torch numbers groups by attempt; without this a second try would look under a name of its own.
            # The counter is private: without it a second try fails as it would without us.
            world = getattr(dist.distributed_c10d, "_world", None)
            if world is not None:
                world.group_count = 0
        reached = f"{topology.main_address}:{topology.main_port}" if init_method is None else init_method
        limit = timeout if timeout is not None else "torch's default"
        raise CollectiveError(
            f"The ranks did not find each other: {str(error).strip().splitlines()[0]}",
            where=f"{place}, at {reached}, backend {spec}, timeout {limit}",
            fix=f"start all {topology.world_size} processes, with the same address and a free port",
        ) from error


def again(timeout: timedelta | None, environ: Mapping[str, str] | None = None) -> Any:
    """Return where the ranks meet after a restart by torch's launcher, None when this is no such.

    It keeps one store for all attempts. In it torch would look for the ranks where those of the attempt
    before were, and wait for ever.
    """
    env = os.environ if environ is None else environ
    attempt = env.get("TORCHELASTIC_RESTART_COUNT", "0")
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or attempt == "0":
        return None
    stores: Any = vars(dist)
    store = stores["TCPStore"](
        env["MASTER_ADDR"],
        int(env["MASTER_PORT"]),
        int(env["WORLD_SIZE"]),
        is_master=False,
        timeout=timeout or _PATIENCE,
    )
    return stores["PrefixStore"](f"accel/attempt/{attempt}", store)


def rendezvous(topology: Topology, environ: Mapping[str, str] | None = None) -> str:
    """Return where the ranks meet: ``env://`` when torch's variables are complete, else the address."""
    environ = os.environ if environ is None else environ
    # torchrun keeps a store alive for its workers and says so in variables that only env:// reads.
    if all(name in environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return "env://"
    address = topology.main_address
    return (
        f"tcp://[{address}]:{topology.main_port}"
        if ":" in address
        else f"tcp://{address}:{topology.main_port}"
    )


def backend_for(hardware: Device, backend: str | None = None) -> str:
    """Return what to pass to ``init_process_group`` for this hardware.

    An accelerator's own backend is paired with gloo for CPU tensors ("cpu:gloo,cuda:nccl"), so that
    objects, votes and barriers never go through the accelerator. A ``backend`` that is asked for by
    name must be one the hardware offers; a spelled-out pair is passed on as it is.
    """
    if backend is not None and ":" in backend:
        return backend
    offered = hardware.backends()
    if backend is not None and backend not in offered:
        raise CapabilityError(
            f"The backend {backend!r} cannot be used on {hardware.name}",
            where=f"torch {torch.__version__}; this hardware offers: {', '.join(offered) or 'none'}",
            fix="leave the backend out to get the best one, or install a PyTorch that has it",
        )
    if not offered:
        reason = hardware.supports("distributed").reason
        raise CapabilityError(f"Several processes on {hardware.name} cannot talk to each other: {reason}")
    best = backend or offered[0]
    through_cpu = hardware_of("cpu").backends()
    if best in through_cpu or "gloo" not in through_cpu:
        return best
    return f"cpu:gloo,{hardware.name}:{best}"


__all__ = ["again", "backend_for", "join", "rendezvous"]
