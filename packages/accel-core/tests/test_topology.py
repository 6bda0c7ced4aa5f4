import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_core.errors import TopologyError
from accel_core.slurm import first_host, tasks_per_node
from accel_core.topology import Topology

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.7",
    "MASTER_PORT": "12345",
}
SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "6",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "3",
    "SLURM_NNODES": "4",
    "SLURM_TASKS_PER_NODE": "2(x3),1",
    "SLURM_JOB_NODELIST": "node[003-005,010]",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
PMI = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
MVAPICH = {name.replace("OMPI_", "MV2_"): value for name, value in OPEN_MPI.items()}


def without(environ, *names):
    return {name: value for name, value in environ.items() if name not in names}


def test_nothing_said_is_one_process():
    assert Topology.detect({}) == Topology(0, 1, 0, 1, 0, 1, "127.0.0.1", 29500, "single")


def test_the_environment_of_the_process_is_the_default(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert Topology.detect() == Topology.detect(TORCHRUN)


def test_torchrun():
    assert Topology.detect(TORCHRUN) == Topology(5, 8, 1, 4, 1, 2, "10.0.0.7", 12345, "torchrun")


def test_nodes_follow_from_local_sizes_when_torchrun_does_not_number_them():
    found = Topology.detect(without(TORCHRUN, "GROUP_RANK", "GROUP_WORLD_SIZE"))
    assert (found.node_rank, found.num_nodes) == (1, 2)


def test_a_set_made_by_hand_on_one_node():
    found = Topology.detect({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    assert found == Topology(1, 2, 1, 2, 0, 1, source="torchrun")


def test_the_local_size_of_deepspeeds_launcher():
    found = Topology.detect(without(TORCHRUN, "LOCAL_WORLD_SIZE") | {"LOCAL_SIZE": "4"})
    assert found.local_world_size == 4


def test_slurm():
    assert Topology.detect(SLURM) == Topology(6, 7, 0, 1, 3, 4, "node003", 24567, "slurm")


def test_a_step_counts_more_than_its_allocation():
    step = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "node004",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "0",
    }
    found = Topology.detect(SLURM | step)
    assert (found.rank, found.world_size, found.local_world_size, found.num_nodes) == (1, 2, 2, 1)
    assert found.main_address == "127.0.0.1"


@pytest.mark.parametrize(
    "environ",
    [
        without(SLURM, "SLURM_PROCID", "SLURM_STEP_ID", "SLURM_LOCALID", "SLURM_NODEID"),
        without(SLURM, "SLURM_STEP_ID"),
        SLURM | {"SLURM_STEP_ID": "4294967290"},
        SLURM | {"SLURM_STEP_ID": "4294967291"},
        SLURM | {"SLURM_STEP_ID": "batch"},
    ],
    ids=["salloc shell", "batch script", "interactive step", "batch step", "named step"],
)
def test_an_allocation_without_an_srun_is_one_process(environ):
    assert Topology.detect(environ) == Topology()


def test_torchrun_inside_srun_speaks_for_its_workers():
    assert Topology.detect(TORCHRUN | SLURM).source == "torchrun"


def test_mpirun_inside_slurm_speaks_for_its_ranks_and_not_for_its_daemon():
    daemon = SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    assert Topology.detect(daemon | OPEN_MPI).source == "openmpi"
    assert Topology.detect(daemon | PMI | {"MASTER_ADDR": "a"}).source == "pmi"


def test_srun_with_pmi_is_still_slurm():
    assert Topology.detect(SLURM | {"PMI_RANK": "6", "PMI_SIZE": "7"}).source == "slurm"


def test_a_job_script_may_export_the_world_size_beside_srun_but_it_must_agree():
    assert Topology.detect(SLURM | {"WORLD_SIZE": "7"}).world_size == 7
    with pytest.raises(TopologyError, match=r"WORLD_SIZE='8' is not what SLURM_NTASKS='7' says"):
        Topology.detect(SLURM | {"WORLD_SIZE": "8"})


@pytest.mark.parametrize(
    ("environ", "source"), [(OPEN_MPI, "openmpi"), (MVAPICH, "mvapich2")], ids=["open mpi", "mvapich2"]
)
def test_mpi_on_one_node(environ, source):
    assert Topology.detect(environ) == Topology(1, 2, 1, 2, 0, 1, source=source)


def test_mpi_on_two_nodes_needs_an_address():
    found = Topology.detect(PMI | {"MASTER_ADDR": "head"})
    assert found == Topology(3, 4, 1, 2, 1, 2, "head", 29500, "pmi")
    with pytest.raises(TopologyError, match="MASTER_ADDR is not set, and there are several nodes"):
        Topology.detect(PMI)


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        (TORCHRUN | {"RANK": "8"}, ["RANK='8' must be less than WORLD_SIZE='8'"]),
        (TORCHRUN | {"RANK": "-1"}, ["RANK='-1' must be at least 0"]),
        (
            TORCHRUN | {"RANK": "one", "WORLD_SIZE": "2.0", "MASTER_PORT": "http"},
            ["RANK='one'", "WORLD_SIZE='2.0'", "MASTER_PORT='http'"],
        ),
        (TORCHRUN | {"LOCAL_RANK": "4"}, ["LOCAL_RANK='4' must be less than LOCAL_WORLD_SIZE='4'"]),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, ["LOCAL_WORLD_SIZE='9' must not be more than WORLD_SIZE='8'"]),
        (TORCHRUN | {"MASTER_PORT": "70000"}, ["MASTER_PORT='70000' must be a port"]),
        (
            TORCHRUN | {"GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0"},
            ["LOCAL_WORLD_SIZE='4' must equal WORLD_SIZE='8'"],
        ),
        ({"RANK": "0"}, ["WORLD_SIZE is not set", "LOCAL_RANK is not set"]),
        ({"LOCAL_RANK": "0"}, ["RANK is not set", "WORLD_SIZE is not set"]),
        ({"WORLD_SIZE": "2"}, ["RANK and LOCAL_RANK are not set"]),
        ({"WORLD_SIZE": "many"}, ["WORLD_SIZE='many' must be a whole number"]),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, ["LOCAL_WORLD_SIZE or LOCAL_SIZE is not set"]),
        (without(TORCHRUN, "MASTER_ADDR"), ["MASTER_ADDR is not set, and there are several nodes"]),
        (SLURM | {"SLURM_TASKS_PER_NODE": "2(x4)"}, ["'2(x4)' adds up to 8", "SLURM_NTASKS='7'"]),
        (SLURM | {"SLURM_TASKS_PER_NODE": "two"}, ["SLURM_TASKS_PER_NODE='two' must be a SLURM task list"]),
        (SLURM | {"SLURM_NODEID": "4"}, ["lists 4 nodes", "SLURM_NODEID='4'"]),
        (SLURM | {"SLURM_JOB_NODELIST": "node["}, ["SLURM_JOB_NODELIST='node[' must be a SLURM node list"]),
        (without(SLURM, "SLURM_LOCALID"), ["SLURM_LOCALID is not set"]),
        (without(OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_RANK"), ["OMPI_COMM_WORLD_LOCAL_RANK is not set"]),
        ({"PMI_RANK": "0", "PMI_SIZE": "x"}, ["PMI_SIZE='x'"]),
    ],
)
def test_contradictions_name_every_variable_and_value(environ, named):
    with pytest.raises(TopologyError) as caught:
        Topology.detect(environ)
    for part in named:
        assert part in str(caught.value)


def test_all_faults_come_at_once():
    with pytest.raises(TopologyError) as caught:
        Topology(rank=4, world_size=4, local_rank=-1, main_port=-1)
    text = str(caught.value)
    assert "rank=4 must be less than world_size=4" in text
    assert "local_rank=-1 must be at least 0" in text
    assert "main_port=-1 must be a port" in text


@st.composite
def clusters(draw):
    """Nodes with their numbers of ranks, and one rank among them."""
    counts = draw(st.lists(st.integers(1, 8), min_size=1, max_size=6))
    node = draw(st.integers(0, len(counts) - 1))
    local = draw(st.integers(0, counts[node] - 1))
    return counts, node, local


def expected(counts, node, local, source, address, port):
    rank = sum(counts[:node]) + local
    return Topology(rank, sum(counts), local, counts[node], node, len(counts), address, port, source)


@given(clusters())
def test_every_cluster_is_read_from_torchrun(cluster):
    counts, node, local = cluster
    want = expected(counts, node, local, "torchrun", "host", 1)
    environ = {
        "RANK": want.rank,
        "WORLD_SIZE": want.world_size,
        "LOCAL_RANK": local,
        "LOCAL_WORLD_SIZE": counts[node],
        "GROUP_RANK": node,
        "GROUP_WORLD_SIZE": len(counts),
        "MASTER_ADDR": "host",
        "MASTER_PORT": 1,
    }
    assert Topology.detect({name: str(value) for name, value in environ.items()}) == want


@given(clusters())
def test_every_cluster_is_read_from_slurm(cluster):
    counts, node, local = cluster
    want = expected(counts, node, local, "slurm", "n0" if len(counts) > 1 else "127.0.0.1", 29500)
    environ = {
        "SLURM_STEP_ID": 3,
        "SLURM_PROCID": want.rank,
        "SLURM_NTASKS": want.world_size,
        "SLURM_LOCALID": local,
        "SLURM_NODEID": node,
        "SLURM_NNODES": len(counts),
        "SLURM_TASKS_PER_NODE": ",".join(map(str, counts)),
        "SLURM_JOB_NODELIST": f"n[0-{len(counts)}]",
    }
    assert Topology.detect({name: str(value) for name, value in environ.items()}) == want


@given(st.integers(1, 6), st.integers(1, 8), st.data())
def test_every_cluster_of_equal_nodes_is_read_from_mpi(nodes, local_size, data):
    rank = data.draw(st.integers(0, nodes * local_size - 1))
    environ = {
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_SIZE": str(nodes * local_size),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank % local_size),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(local_size),
        "MASTER_ADDR": "host",
    }
    want = expected([local_size] * nodes, rank // local_size, rank % local_size, "openmpi", "host", 29500)
    assert Topology.detect(environ) == want


@given(
    st.dictionaries(
        st.sampled_from([*TORCHRUN, *SLURM, *OPEN_MPI, *PMI]),
        st.one_of(st.integers(-2, 9).map(str), st.text(st.characters(exclude_categories=["Cs"]), max_size=4)),
    )
)
def test_no_environment_leads_to_anything_but_a_topology_or_a_topology_error(environ):
    try:
        found = Topology.detect(environ)
    except TopologyError:
        return
    assert 0 <= found.rank < found.world_size
    assert 0 <= found.local_rank < found.local_world_size <= found.world_size


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node[003-007,010]", "node003"),
        ("node1", "node1"),
        ("a,b", "a"),
        ("gpu-[10,12],cpu1", "gpu-10"),
        ("r[1-2]n[05-07]", "r1n05"),
        ("r[1-2]n[05-07]x,q", "r1n05x"),
        ("host.example.org", "host.example.org"),
    ],
)
def test_the_first_host_of_a_node_list(nodes, host):
    assert first_host(nodes) == host


@pytest.mark.parametrize("nodes", ["", " ", "node[", "node[]", "node]", ",a", "node[a-b]"])
def test_a_broken_node_list(nodes):
    with pytest.raises(ValueError, match="must be a SLURM node list"):
        first_host(nodes)


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 5)), min_size=1))
def test_the_task_list_is_the_counts_it_was_written_from(runs):
    text = ",".join(str(count) if times == 1 else f"{count}(x{times})" for count, times in runs)
    assert tasks_per_node(text) == [count for count, times in runs for _ in range(times)]
