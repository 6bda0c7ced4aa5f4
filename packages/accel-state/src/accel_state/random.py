"""Seeds and generator states: set in one process, or made equal in all."""

from __future__ import annotations

import random as python_random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from accel_core.enums import RNGType
from accel_core.errors import CapabilityError, ConfigError, Fault, UnknownNameError

from . import process
from .devices.choose import device_names, hardware_of
from .operations.agreement import of_process

if TYPE_CHECKING:
    from accel_core.protocols import Collectives

_LARGEST = 2**32 - 1
"""NumPy takes no larger seed."""


def set_seed(seed: int, device_specific: bool = False, deterministic: bool = False) -> int:
    """Seed Python, NumPy (when installed), torch and its accelerators; return the seed that was used.

    ``device_specific``: add the rank, so that processes draw different numbers. ``deterministic``:
    have torch refuse operations that do not give equal results in equal runs. Raises ConfigError
    for anything but a whole number from 0 to 2**32 - 1.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= _LARGEST:
        raise ConfigError("set_seed", [Fault("seed", seed, f"must be a whole number from 0 to {_LARGEST}")])
    if device_specific:
        rank = (process.current() or process.start()).topology.rank
        # Around the end and not over it: NumPy refuses more.
        seed = (seed + rank) % (_LARGEST + 1)
    python_random.seed(seed)
    _seed_numpy(seed)
    torch.manual_seed(seed)
    # torch knows the generators in its own tree; kinds of hardware outside it are seeded through theirs.
    # Only the one this process computes on: asking all would load the package of every vendor installed.
    process.chosen_hardware().rng.seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True)
    return seed


def _seed_numpy(seed: int) -> None:
    try:
        import numpy as np
    except ImportError:
        return
    np.random.seed(seed)


def synchronize_rng_state(
    rng_type: RNGType | str | None = None,
    generator: torch.Generator | None = None,
    *,
    collectives: Collectives | None = None,
) -> None:
    """Give every process rank 0's state of one kind of generator.

    ``rng_type``: ``torch`` (the CPU generator, the default), ``generator`` (the one passed), or a
    kind of hardware (``cuda``, ``xpu``, ...). Raises UnknownNameError for other names, ConfigError
    for ``generator`` without one, CapabilityError for hardware that is not there.
    """
    read, write = _access(_name_of(rng_type), generator)
    group = of_process(collectives)
    if group.world_size > 1:
        write(group.broadcast_object(read(), 0))


def synchronize_rng_states(
    rng_types: Sequence[RNGType | str],
    generator: torch.Generator | None = None,
    *,
    collectives: Collectives | None = None,
) -> None:
    """Give every process rank 0's state of several kinds of generators, in one exchange."""
    if isinstance(rng_types, str):
        fault = Fault("rng_types", rng_types, "must be a list of names", f"pass [{rng_types!r}]")
        raise ConfigError("synchronize_rng_states", [fault])
    accesses = [_access(_name_of(kind), generator) for kind in rng_types]
    group = of_process(collectives)
    if group.world_size == 1 or not accesses:
        return
    states = group.broadcast_object([read() for read, _ in accesses], 0)
    for (_, write), state in zip(accesses, states, strict=True):
        write(state)


def _name_of(kind: RNGType | str | None) -> str:
    return "torch" if kind is None else str(kind)


def _access(
    name: str, generator: torch.Generator | None
) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    """Return how to read and how to write the state of one kind of generator."""
    if name == "generator":
        if generator is None:
            fault = Fault(
                "generator", None, "is needed to synchronise the type 'generator'", "pass a torch.Generator"
            )
            raise ConfigError("synchronize_rng_state", [fault])
        return generator.get_state, generator.set_state
    kind = "cpu" if name == "torch" else name
    if kind not in device_names():
        raise UnknownNameError("random number generator", name, {*RNGType.list(), *device_names()})
    hardware = hardware_of(kind)
    answer = hardware.available()
    if not answer:
        raise CapabilityError(
            f"The generator of {name!r} cannot be synchronised: {answer.reason}",
            fix="leave it out of rng_types",
        )
    return hardware.rng.get_state, hardware.rng.set_state


__all__ = ["set_seed", "synchronize_rng_state", "synchronize_rng_states"]
