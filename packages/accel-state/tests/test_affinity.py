"""Processes bound to cores: really bound, on memory nodes that a folder describes."""

import os

import pytest

from accel_core.errors import CapabilityError, ConfigError
from accel_core.protocols import Support
from accel_state import affinity, process
from accel_state.affinity import override_numa_affinity, read_cores, set_numa_affinity

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and two cores",
)


class Plugged:
    """An accelerator as far as affinity goes: it says where it sits."""

    name = "plugged"

    def __init__(self, *places):
        self.places = places

    def pci_address(self, index):
        return self.places[index]


class Elsewhere:
    name = "elsewhere"

    def supports(self, capability):
        return Support(False, f"no {capability}")


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """Two nodes, each with one of the cores that this process may use; give the cores back afterwards."""
    before = os.sched_getaffinity(0)
    first, second, *_ = sorted(before)
    for number, cores in enumerate((str(first), str(second), "")):
        folder = tmp_path / f"node{number}"
        folder.mkdir()
        (folder / "cpulist").write_text(f"{cores}\n")
    for place, node in (("0000:3b:00.0", 1), ("0000:af:00.0", 0), ("0000:00:01.0", -1)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "numa_node").write_text(f"{node}\n")
    monkeypatch.setattr(affinity, "_NODES", tmp_path)
    monkeypatch.setattr(affinity, "_DEVICES", tmp_path)
    affinity._bound.clear()
    yield first, second
    os.sched_setaffinity(0, before)
    affinity._bound.clear()


def test_processes_on_the_cpu_take_the_nodes_in_turn(nodes):
    before = os.sched_getaffinity(0)
    for index in range(3):
        override_numa_affinity(index)
        assert os.sched_getaffinity(0) == {nodes[index % 2]}
        os.sched_setaffinity(0, before)


def test_a_process_gets_the_cores_near_its_device(nodes, monkeypatch):
    monkeypatch.setattr(process, "chosen_hardware", lambda: Plugged("0000:af:00.0", "0000:3b:00.0"))
    set_numa_affinity(1)
    assert os.sched_getaffinity(0) == {nodes[1]}


def test_the_first_answer_counts_until_it_is_overridden(nodes):
    set_numa_affinity(0)
    os.sched_setaffinity(0, set(nodes))
    set_numa_affinity(0)
    assert os.sched_getaffinity(0) == set(nodes)
    override_numa_affinity(0)
    assert os.sched_getaffinity(0) == {nodes[0]}


@pytest.mark.parametrize(
    ("hardware", "text"),
    [
        (Plugged("0000:00:01.0"), "belongs to no memory node with cores"),
        (Plugged("0000:ff:00.0"), "does not tell the memory node of the device at 0000:ff:00.0"),
        (Elsewhere(), "a device of kind 'elsewhere' sits is not known"),
    ],
)
def test_a_device_whose_node_is_unknown_binds_nothing(nodes, monkeypatch, hardware, text):
    before = os.sched_getaffinity(0)
    monkeypatch.setattr(process, "chosen_hardware", lambda: hardware)
    with pytest.raises(CapabilityError, match=text):
        override_numa_affinity(0)
    assert os.sched_getaffinity(0) == before


def test_cores_that_the_job_may_not_use_are_not_taken(nodes):
    os.sched_setaffinity(0, {nodes[1]})
    with pytest.raises(CapabilityError, match="are not for this process") as caught:
        override_numa_affinity(0)
    assert caught.value.where == f"memory node 0 has {nodes[0]}, allowed are {nodes[1]}"


@pytest.mark.parametrize("index", [-1, "0", 1.0])
def test_a_local_rank_is_a_whole_number(index):
    with pytest.raises(ConfigError, match="local_process_index"):
        override_numa_affinity(index)


@pytest.mark.world(2)
def test_the_environment_asks_for_it(pool, world):
    def run():
        place = process.start().topology
        return sorted(affinity._bound), place.local_rank

    assert pool.run(world, run, env={"ACCELERATE_CPU_AFFINITY": "true"}) == [([0], 0), ([1], 1)]
    assert pool.run(world, run) == [([], 0), ([], 1)]


def test_cores_as_linux_writes_them():
    assert read_cores("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert read_cores("\n") == frozenset()
