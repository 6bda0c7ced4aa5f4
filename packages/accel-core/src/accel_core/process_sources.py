"""Read a process's place from the variables of each launcher, for `accel_core.topology`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .environment import processes as env
from .slurm import first_host, tasks_per_node

DEFAULT_ADDRESS = "127.0.0.1"
"""All ranks are on this machine. Not ``localhost``, which may mean IPv6 to some ranks and IPv4 to others."""
DEFAULT_PORT = 29500
"""The port that torch's own launcher uses."""

_MPI_RANKS = (env.OMPI_COMM_WORLD_RANK, env.MV2_COMM_WORLD_RANK, env.MPI_LOCALRANKID)
_SPECIAL_STEPS = 0xFFFFFFF0
"""Step numbers from here up are SLURM's own (batch script, interactive shell), not an srun of tasks."""


@dataclass(slots=True)
class Finding:
    """What one launcher says: values by field, the variable behind each for messages, and what is wrong."""

    source: str
    environ: Mapping[str, str]
    values: dict[str, int | str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def first(self, *names: str) -> tuple[str, str] | None:
        """Return name and value of the first variable that is set."""
        return next(
            ((name, self.environ[name]) for name in names if self.environ.get(name, "").strip()), None
        )

    def keep(self, target: str, value: int | str, name: str) -> None:
        """Take ``value`` for field ``target``; ``name`` says where it comes from."""
        self.values[target] = value
        self.names[target] = name

    def whole(self, target: str, *names: str, default: int | None = None) -> None:
        """Take the whole number in the first set of ``names``; without one, ``default``, or note the lack."""
        found = self.first(*names)
        if found is None:
            if default is None:
                self.problems.append(f"{' or '.join(names)} is not set")
            else:
                self.keep(target, default, f"{names[0]} (not set, taken as {default})")
            return
        name, text = found
        try:
            self.keep(target, int(text), f"{name}={text!r}")
        except ValueError:
            self.problems.append(f"{name}={text!r} must be a whole number")

    def get(self, target: str) -> int | None:
        """Return a number that was taken, or None when it was wrong or lacking."""
        value = self.values.get(target)
        return value if isinstance(value, int) else None

    def meeting_point(self, address: str | None = None, port: int = DEFAULT_PORT) -> None:
        """Take MASTER_ADDR and MASTER_PORT; several nodes without an address could never meet."""
        found = self.first(env.MASTER_ADDR)
        if found is not None:
            self.keep("main_address", found[1].strip(), f"{found[0]}={found[1]!r}")
        elif address is not None:
            self.keep("main_address", address, "the first host of the node list")
        elif (self.get("num_nodes") or 1) > 1:
            self.problems.append(f"{env.MASTER_ADDR} is not set, and there are several nodes")
        self.whole("main_port", env.MASTER_PORT, default=port)


def torchrun(environ: Mapping[str, str]) -> Finding | None:
    """Read torchrun's variables, also set by hand or by other launchers."""
    found = Finding("torchrun", environ)
    if not found.first(env.RANK, env.LOCAL_RANK):
        # WORLD_SIZE alone may be a convenience of a job script whose ranks come from srun or mpirun.
        return None
    found.whole("rank", env.RANK)
    found.whole("world_size", env.WORLD_SIZE)
    rank, world = found.get("rank"), found.get("world_size")
    # A missing local rank is harmless with one process only: with more, all would take the same device.
    found.whole("local_rank", env.LOCAL_RANK, default=0 if world == 1 else None)
    # Without a local size, one node is the only reading of a local rank that equals the rank.
    one_node = world if rank is not None and rank == found.get("local_rank") else None
    found.whole("local_world_size", env.LOCAL_WORLD_SIZE, env.LOCAL_SIZE, default=one_node)
    nodes, node = _blocks(rank, world, found.get("local_world_size"))
    found.whole("num_nodes", env.GROUP_WORLD_SIZE, default=nodes)
    found.whole("node_rank", env.GROUP_RANK, default=node)
    found.meeting_point()
    return found


def slurm(environ: Mapping[str, str]) -> Finding | None:
    """Read the variables of an srun task.

    An allocation's own shell or batch script has no step, or one of SLURM's special steps: it is
    one process. Ranks that an MPI daemon started inherit the daemon's task, so MPI speaks for them.
    """
    found = Finding("slurm", environ)
    step = environ.get(env.SLURM_STEP_ID, "").strip()
    if not step.isdecimal() or int(step) >= _SPECIAL_STEPS or not found.first(env.SLURM_PROCID):
        return None
    if found.first(*_MPI_RANKS):
        return None
    found.whole("rank", env.SLURM_PROCID)
    found.whole("world_size", env.SLURM_STEP_NUM_TASKS, env.SLURM_NTASKS)
    found.whole("local_rank", env.SLURM_LOCALID)
    found.whole("node_rank", env.SLURM_NODEID, default=0)
    found.whole("num_nodes", env.SLURM_STEP_NUM_NODES, env.SLURM_NNODES, default=1)
    _slurm_local_world_size(found)
    address = None
    nodes = found.first(env.SLURM_STEP_NODELIST, env.SLURM_JOB_NODELIST)
    if (found.get("num_nodes") or 1) > 1 and nodes is not None:
        try:
            address = first_host(nodes[1])
        except ValueError as error:
            found.problems.append(f"{nodes[0]}={nodes[1]!r} {error}")
            address = ""
    # Two jobs may share a node, so the port comes from the job; below 32768, where systems take
    # their temporary ports, and above 20000, away from most services.
    job = environ.get(env.SLURM_JOB_ID, "")
    found.meeting_point(address, 20000 + int(job) % 10000 if job.isdecimal() else DEFAULT_PORT)
    return found


def _slurm_local_world_size(found: Finding) -> None:
    listed = found.first(env.SLURM_STEP_TASKS_PER_NODE, env.SLURM_TASKS_PER_NODE)
    world, node = found.get("world_size"), found.get("node_rank")
    if listed is None:
        one_node = world if found.get("num_nodes") == 1 else None
        found.whole("local_world_size", env.SLURM_NTASKS_PER_NODE, default=one_node)
        return
    label = f"{listed[0]}={listed[1]!r}"
    try:
        counts = tasks_per_node(listed[1])
    except ValueError as error:
        found.problems.append(f"{label} {error}")
        return
    if world is None or node is None:
        return
    if sum(counts) != world:
        found.problems.append(
            f"{label} adds up to {sum(counts)}, but there are {found.names['world_size']} tasks"
        )
    elif not 0 <= node < len(counts):
        found.problems.append(
            f"{label} lists {len(counts)} nodes, but this is node {found.names['node_rank']}"
        )
    else:
        found.keep("local_world_size", counts[node], label)


def _mpi(
    source: str, rank: str, size: str, local_rank: str, local_size: str
) -> Callable[..., Finding | None]:
    def read(environ: Mapping[str, str]) -> Finding | None:
        found = Finding(source, environ)
        if not found.first(rank):
            return None
        found.whole("rank", rank)
        found.whole("world_size", size)
        alone = found.get("world_size") == 1
        found.whole("local_rank", local_rank, default=0 if alone else None)
        found.whole("local_world_size", local_size, default=1 if alone else None)
        nodes, node = _blocks(found.get("rank"), found.get("world_size"), found.get("local_world_size"))
        found.keep("num_nodes", nodes, f"the number of nodes, {nodes}")
        found.keep("node_rank", node, f"this node, {node}")
        found.meeting_point()
        return found

    return read


open_mpi = _mpi(
    "openmpi",
    env.OMPI_COMM_WORLD_RANK,
    env.OMPI_COMM_WORLD_SIZE,
    env.OMPI_COMM_WORLD_LOCAL_RANK,
    env.OMPI_COMM_WORLD_LOCAL_SIZE,
)
"""Read the variables of Open MPI's mpirun."""
mvapich2 = _mpi(
    "mvapich2",
    env.MV2_COMM_WORLD_RANK,
    env.MV2_COMM_WORLD_SIZE,
    env.MV2_COMM_WORLD_LOCAL_RANK,
    env.MV2_COMM_WORLD_LOCAL_SIZE,
)
"""Read the variables of MVAPICH2's launchers."""
pmi = _mpi("pmi", env.PMI_RANK, env.PMI_SIZE, env.MPI_LOCALRANKID, env.MPI_LOCALNRANKS)
"""Read the variables of Hydra, the mpirun of Intel MPI and MPICH."""


def _blocks(rank: int | None, world: int | None, local: int | None) -> tuple[int, int]:
    """Return the number of nodes and the node of ``rank`` when each node in turn takes ``local`` ranks.

    A number that is missing or impossible is reported elsewhere; here it must only do no harm.
    """
    if rank is None or world is None or local is None or rank < 0 or local < 1:
        return 1, 0
    nodes = max(1, -(-world // local))
    return nodes, min(rank // local, nodes - 1)


DETECTORS: tuple[Callable[[Mapping[str, str]], Finding | None], ...] = (
    torchrun,
    slurm,
    open_mpi,
    mvapich2,
    pmi,
)
"""Asked in this order; the first that finds its variables speaks."""

__all__ = ["DEFAULT_ADDRESS", "DEFAULT_PORT", "DETECTORS", "Finding"]
