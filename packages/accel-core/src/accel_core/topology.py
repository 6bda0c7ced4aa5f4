"""Which process this is among all, as the launcher or scheduler that started it says.

`Topology.detect` asks, in this order: torchrun's variables (most launchers speak them), SLURM's
srun, Open MPI, MVAPICH2, PMI (Intel MPI, MPICH); without any of them there is one process.
Variables that are incomplete or contradict each other raise TopologyError with all of them: a
guess would train a wrong set of ranks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from .environment import processes as env
from .errors import TopologyError
from .process_sources import DEFAULT_ADDRESS, DEFAULT_PORT, DETECTORS, Finding

_FIX = "start the script with a launcher such as accel launch, torchrun or srun, or unset these variables"


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield what cannot be; ``{field}`` stands for the name under which the user knows the value."""
    sizes = ("world_size", "local_world_size", "num_nodes")
    for size in sizes:
        if values[size] < 1:
            yield f"{{{size}}} must be at least 1"
    for place, size in zip(("rank", "local_rank", "node_rank"), sizes, strict=True):
        if values[place] < 0:
            yield f"{{{place}}} must be at least 0"
        elif 1 <= values[size] <= values[place]:
            yield f"{{{place}}} must be less than {{{size}}}"
    if 1 <= values["world_size"] < values["local_world_size"]:
        yield "{local_world_size} must not be more than {world_size}"
    if 1 <= values["world_size"] < values["num_nodes"]:
        yield "{num_nodes} must not be more than {world_size}: every node has a process"
    if 0 <= values["rank"] < values["local_rank"]:
        yield "{local_rank} must not be more than {rank}"
    if values["num_nodes"] == 1 and 1 <= values["local_world_size"] < values["world_size"]:
        yield "{local_world_size} must equal {world_size}: there is one node"
    if not values["main_address"]:
        yield "{main_address} must not be empty"
    if not 0 <= values["main_port"] <= 65535:
        yield "{main_port} must be a port, 0 to 65535"


def _error(what: str, problems: list[str]) -> TopologyError:
    lines = "".join(f"\n  - {problem}" for problem in problems)
    return TopologyError(f"{what}:{lines}", where="environment variables of this process", fix=_FIX)


@dataclass(frozen=True, slots=True)
class Topology:
    """The place of one process among all. Raises TopologyError for numbers that cannot be."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    """The number of this machine. MPI does not say: ranks are taken to fill one node after another."""
    num_nodes: int = 1
    main_address: str = DEFAULT_ADDRESS
    main_port: int = DEFAULT_PORT
    source: str = "single"
    """Who said so: ``torchrun``, ``slurm``, ``openmpi``, ``mvapich2``, ``pmi`` or ``single``."""

    def __post_init__(self) -> None:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        names = {name: f"{name}={value!r}" for name, value in values.items()}
        problems = [text.format_map(names) for text in _contradictions(values)]
        if problems:
            raise _error("No set of processes can have these numbers", problems)

    @classmethod
    def detect(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Return the topology that ``environ`` (the process's by default) describes.

        Raises TopologyError that names every variable which is missing, unreadable or contradicts another.
        """
        environ = os.environ if environ is None else environ
        for detector in DETECTORS:
            found = detector(environ)
            if found is not None:
                return cls._checked(found)
        found = Finding("torchrun", environ)
        found.whole("world_size", env.WORLD_SIZE, default=1)
        if found.problems or found.get("world_size") != 1:
            found.problems.append(
                f"{env.WORLD_SIZE} says that there are several processes, but nothing says which"
            )
            found.problems.append(f"{env.RANK} and {env.LOCAL_RANK} are not set")
            return cls._checked(found)
        return cls()

    @classmethod
    def _checked(cls, found: Finding) -> Self:
        what = f"The variables of {found.source} are incomplete or contradict each other"
        if found.problems:
            raise _error(what, found.problems)
        names = {item.name: item.name for item in fields(cls)} | found.names
        values: dict[str, Any] = {item.name: item.default for item in fields(cls)} | found.values
        problems = [text.format_map(names) for text in _contradictions(values)]
        stated = found.environ.get(env.WORLD_SIZE, "").strip()
        # Job scripts export WORLD_SIZE beside what srun or mpirun say; the two must agree.
        if found.source != "torchrun" and stated not in {"", str(values["world_size"])}:
            problems.append(f"{env.WORLD_SIZE}={stated!r} is not what {names['world_size']} says")
        if problems:
            raise _error(what, problems)
        return cls(**values | {"source": found.source})


__all__ = ["Topology"]
