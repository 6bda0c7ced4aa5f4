"""Leave the process group so that nobody waits for this rank any more, and meet again in a new one."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch.distributed as dist

from accel_core.errors import StateError

from .collectives import TorchCollectives, backend_names

if TYPE_CHECKING:
    from .process import ProcessState


def obstacle(state: ProcessState) -> str:
    """Return why the ranks could not leave their group and meet again; empty when they can."""
    collectives = state.collectives
    if not isinstance(collectives, TorchCollectives):
        return "debug mode numbers every exchange, and ranks that stop at different ones cannot go on"
    if not state.owns_group or collectives.process_group is None:
        return "the process group was made by the program, so it is not accel's to replace"
    others = sorted(set(backend_names(collectives.process_group).values()) - {"gloo"})
    if others:
        return f"ranks that wait inside the backend {others[0]!r} are not woken when another rank leaves"
    return ""


def leave(state: ProcessState) -> None:
    """Destroy the group of `obstacle`-free ``state``; ranks that wait for this one get an error at once.

    gloo closes its connections when nothing refers to the group any more. Raises StateError when
    something still does.
    """
    collectives = state.collectives
    assert isinstance(collectives, TorchCollectives)
    group = ref(collectives.process_group)
    collectives.close()
    dist.destroy_process_group()
    gc.collect()
    left = group()
    if left is not None:
        kinds = sorted({type(each).__name__ for each in _owners(left)}) or ["code outside of Python"]
        raise StateError(
            f"The process group cannot be left: it is still held by {', '.join(kinds)}",
            where=f"rank {state.topology.rank} of {state.topology.world_size}",
            fix="build and prepare models inside the function, and keep no other name for them",
        )


def rejoin(state: ProcessState, store: Any, name: str) -> None:
    """Make a new group of the same ranks over ``store``; ``name`` is the same on all ranks and used once."""
    assert isinstance(state.collectives, TorchCollectives)
    dist.init_process_group(
        state.backend,
        store=vars(dist)["PrefixStore"](name, store),
        timeout=state.timeout,
        rank=state.topology.rank,
        world_size=state.topology.world_size,
    )
    state.collectives.reopen()
    state.collectives.open_channels()


def prepare(state: ProcessState) -> None:
    """Make now what is made on first use, and what `leave` could not call a rank out of. Collective."""
    assert isinstance(state.collectives, TorchCollectives)
    state.collectives.open_channels()


def progress(state: ProcessState) -> int:
    """Return how many exchanges this rank has begun in its group; -1 where torch does not tell."""
    group = getattr(state.collectives, "process_group", None)
    count = getattr(group, "_get_sequence_number_for_group", None)
    try:
        return -1 if count is None else int(count()) + getattr(state.collectives, "comparisons", 0)
    except RuntimeError:
        return -1


def _owners(group: object) -> list[object]:
    """Return the objects that refer to ``group``, modules instead of the dictionaries of their attributes."""
    found: list[object] = []
    for each in gc.get_referrers(group):
        if hasattr(each, "f_code"):
            continue
        owners = [other for other in gc.get_referrers(each) if getattr(other, "__dict__", None) is each]
        found += owners or [each]
    return found


__all__ = ["leave", "obstacle", "prepare", "progress", "rejoin"]
