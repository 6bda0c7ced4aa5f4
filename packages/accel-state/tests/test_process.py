"""The one process state: alone, in a group made here, in a group of the user's, and bad set-ups."""

import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from accel_core.enums import DistributedType
from accel_core.errors import CapabilityError, CollectiveError, ConfigError, StateError, UnknownNameError
from accel_core.protocols import Collectives, LonelyCollectives
from accel_core.topology import Topology
from accel_state import process
from accel_state.joining import backend_for, join, rendezvous


@pytest.fixture(autouse=True)
def fresh():
    yield
    process.reset()


def test_one_process_makes_no_group():
    state = process.start()
    assert not dist.is_initialized()
    assert (state.topology.rank, state.topology.world_size) == (0, 1)
    assert isinstance(state.collectives, LonelyCollectives)
    assert (state.backend, state.timeout, state.distributed_type) == (None, None, DistributedType.NO)


def test_the_same_set_up_again_is_the_same_object():
    first = process.start(cpu=True)
    assert process.start() is first
    assert process.start(cpu=True) is first
    assert process.start(device="cpu") is first
    assert process.start(device=torch.device("cpu")) is first
    assert process.current() is first


def test_another_device_names_both_and_the_way_out():
    process.start(cpu=True)
    with pytest.raises(StateError, match=r"set up on cpu, asked for cuda") as caught:
        process.start(device="cuda")
    assert "reset()" in caught.value.fix


def test_reset_forgets():
    first = process.start()
    process.reset()
    assert process.current() is None
    assert process.start() is not first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout": 5}, "timeout=5"),
        ({"timeout": timedelta(0)}, "timeout="),
        ({"backend": 3}, "backend=3"),
        ({"cpu": True, "device": "cuda"}, "contradicts cpu=True"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        process.start(**settings)
    assert process.current() is None


def test_absent_hardware_says_why():
    if torch.backends.mps.is_available():
        pytest.skip("this machine has what the test needs to be absent")
    with pytest.raises(CapabilityError, match="'mps' cannot be used: .*Metal"):
        process.start(device="mps")


def test_a_torch_device_that_no_distribution_offers():
    with pytest.raises(UnknownNameError, match="Unknown device 'meta'"):
        process.start(device="meta")


def test_the_environment_names_the_device(monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    assert process.start().device.type == "cpu"
    process.reset()
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "garbage")
    with pytest.raises(ConfigError, match="ACCELERATE_TORCH_DEVICE='garbage'"):
        process.start()
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert process.start().device.type == "cpu"


def test_debug_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DEBUG_MODE", "1")
    monkeypatch.setenv("FORK_LAUNCHED", "1")
    state = process.start()
    assert state.debug
    assert state.fork_launched


@pytest.mark.world(2, 4)
def test_a_group_is_made_with_the_timeout_that_was_asked_for(pool, world):
    def run():
        state = process.start(timeout=timedelta(seconds=47))
        applied = dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout
        assert isinstance(state.collectives, Collectives)
        return (
            state.timeout,
            applied,
            state.backend,
            state.distributed_type,
            state.topology.rank,
            state.collectives.world_size,
        )

    found = pool.run(world, run)
    limit = timedelta(seconds=47)
    assert found == [(limit, limit, "gloo", DistributedType.MULTI_CPU, rank, world) for rank in range(world)]


@pytest.mark.world(2)
def test_a_timeout_really_ends_a_wait(pool, world):
    """The one test that waits: 2 seconds, as asked for, and not torch's half an hour."""

    def run():
        state = process.start(timeout=timedelta(seconds=2))
        state.collectives.barrier()
        if state.topology.rank == 1:
            time.sleep(3)
            return None
        try:
            state.collectives.all_reduce(torch.ones(3, dtype=torch.float64))
        except CollectiveError as error:
            return str(error)

    told, _ = pool.run(world, run)
    assert "all_reduce(sum) did not finish within 0:00:02" in told
    assert "rank 0 of 2, brought (3,) torch.float64, timeout 0:00:02" in told
    assert "test_process.py:" in told
    assert "raise the timeout" in told


@pytest.mark.world(2)
def test_a_rank_that_dies_is_reported_as_such(pool, world):
    def run():
        state = process.start(timeout=timedelta(seconds=30))
        state.collectives.barrier()
        if state.topology.rank == 1:
            os._exit(3)
        state.collectives.barrier()

    errors = pool.failures(world, run)
    assert isinstance(errors[0], CollectiveError)
    assert "barrier lost a rank" in str(errors[0])


@pytest.mark.world(2)
def test_another_timeout_or_backend_is_refused(pool, world):
    def run():
        process.start(timeout=timedelta(seconds=40))
        process.start(timeout=timedelta(seconds=40), backend="gloo")
        with pytest.raises(StateError, match=r"the group applies 0:00:40, asked for 0:00:50"):
            process.start(timeout=timedelta(seconds=50))
        with pytest.raises(StateError, match=r"init_method: set up with None"):
            process.start(init_method="env://")

    pool.run(world, run)


@pytest.mark.world(2)
def test_a_group_of_the_user_is_adopted_and_left_alone(pool, world):
    def run():
        state = process.start()
        assert not state.owns_group
        assert (state.topology.rank, state.topology.world_size) == (dist.get_rank(), 2)
        assert state.timeout == dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout
        process.reset()
        assert dist.is_initialized()
        with pytest.raises(StateError, match="timeout"):
            process.start(timeout=timedelta(seconds=1))
        assert process.current() is None
        return state.backend

    assert pool.run_in_group(world, run) == ["gloo"] * world


@pytest.mark.world(2)
def test_an_adopted_group_is_right_about_rank_and_size(pool, world):
    def run():
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
        state = process.start()
        place = state.topology
        return (place.rank, place.world_size, place.local_rank, place.source)

    found = pool.run_in_group(world, run)
    assert found == [(rank, 2, rank, "torch.distributed") for rank in range(2)]


@pytest.mark.world(2)
def test_own_group_is_destroyed_at_shutdown(pool, world):
    def run():
        process.start()
        process.shutdown()
        assert not dist.is_initialized()
        assert process.current() is not None
        with pytest.raises(CollectiveError, match="was destroyed"):
            process.current().collectives.barrier()

    pool.run(world, run)


@pytest.mark.world(2)
def test_ranks_that_never_come_are_reported_in_time(pool, world):
    def run():
        if os.environ["RANK"] == "1":
            return None
        os.environ["WORLD_SIZE"] = os.environ["LOCAL_WORLD_SIZE"] = "3"
        with pytest.raises(CollectiveError, match="did not find each other") as caught:
            process.start(timeout=timedelta(seconds=1))
        return caught.value.where

    where, _ = pool.run(world, run)
    assert "rank 0 of 3" in where
    assert "timeout 0:00:01" in where


@pytest.mark.world(2)
def test_a_failed_attempt_does_not_spoil_the_next(pool, world, tmp_path):
    """torch numbers its groups by attempt: rank 0, with one attempt more, would look under another name."""

    def run():
        if os.environ["RANK"] == "0":
            with pytest.raises(CollectiveError, match="did not find each other"):
                process.start(init_method=f"file://{tmp_path}/alone", timeout=timedelta(seconds=1))
        state = process.start(init_method=f"file://{tmp_path}/both", timeout=timedelta(seconds=20))
        return state.collectives.all_gather_object(state.topology.rank)

    assert pool.run(world, run) == [[0, 1]] * 2


@pytest.mark.world(2)
def test_meeting_at_an_address_without_torch_variables(pool, world):
    """What SLURM and MPI give: ranks, and an address that only the topology knows."""

    def run():
        rank, port = int(os.environ.pop("RANK")), int(os.environ.pop("MASTER_PORT"))
        place = Topology(rank, 2, rank, 2, main_port=port)
        assert rendezvous(place) == f"tcp://127.0.0.1:{port}"
        join(place, "gloo", timedelta(seconds=20), None)
        found = dist.get_rank()
        dist.barrier()
        dist.destroy_process_group()
        return found

    assert pool.run(world, run) == [0, 1]


@pytest.mark.world(2)
def test_another_attempt_does_not_look_for_the_processes_of_the_one_before(pool, world):
    """torchrun keeps one store for all its attempts, and with it the addresses of dead processes."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def run():
        if os.environ["RANK"] == "0" and os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
            time.sleep(0.5)  # the other finds what is left in the store
        state = process.start(cpu=True)
        ranks = dist.new_group([0, 1], backend="gloo")
        total = torch.ones(1)
        dist.all_reduce(total, group=ranks)
        return int(total), state.collectives.vote(state.topology.rank)()

    for attempt in range(2):
        env = {
            "MASTER_PORT": str(server.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": str(attempt),
        }
        assert pool.run(world, run, env=env) == [(2, [0, 1])] * 2


def test_rendezvous_prefers_torchs_own_variables():
    place = Topology(main_address="fd00::1", main_port=7)
    assert rendezvous(place, {}) == "tcp://[fd00::1]:7"
    full = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "here", "MASTER_PORT": "7"}
    assert rendezvous(place, full) == "env://"


class _Hardware:
    """An accelerator as `backend_for` sees one."""

    name = "cuda"

    def __init__(self, *offered):
        self.offered = offered

    def backends(self):
        return self.offered

    def supports(self, capability):
        from accel_core.protocols import Support

        return Support(False, f"no {capability} here")


def test_an_accelerators_backend_is_paired_with_gloo():
    assert backend_for(_Hardware("nccl", "gloo")) == "cpu:gloo,cuda:nccl"
    assert backend_for(_Hardware("nccl", "gloo"), "gloo") == "gloo"
    assert backend_for(_Hardware("nccl"), "cpu:gloo,cuda:other") == "cpu:gloo,cuda:other"


def test_a_backend_that_the_hardware_does_not_offer():
    with pytest.raises(CapabilityError, match=r"'nccl' cannot be used on cuda.*\n.*offers: gloo"):
        backend_for(_Hardware("gloo"), "nccl")
    with pytest.raises(CapabilityError, match="no distributed here"):
        backend_for(_Hardware())


@pytest.mark.world(2)
def test_more_processes_than_devices_fails_on_every_rank_at_once(pool, world):
    """The stand-in says what a machine with one GPU would; the check is the one that runs there."""

    def run():
        from accel_core.protocols import Support
        from accel_state.process import _together

        class OneGpu:
            name = "cuda"
            visible_variable = "CUDA_VISIBLE_DEVICES"

            def supports(self, capability):
                return Support(False, "one process per device")

            def count(self):
                return 1

        os.environ["CUDA_VISIBLE_DEVICES"] = "3"
        with pytest.raises(
            CapabilityError, match="2 processes .* need a cuda device each, but 1 is"
        ) as caught:
            _together(Topology.detect(), OneGpu(), None, None, None, None)
        return caught.value.where

    assert pool.run(world, run) == ["CUDA_VISIBLE_DEVICES='3'"] * 2


class _Asking(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        state = process.start()
        try:
            state.collectives.barrier()
        except CollectiveError as error:
            return state.topology.rank, str(error.what)
        return state.topology.rank, "took part"


@pytest.mark.world(2)
def test_a_loader_worker_knows_its_rank_but_never_joins(pool, world):
    def run():
        loader = DataLoader(_Asking(), batch_size=None, num_workers=1, multiprocessing_context="fork")
        return list(loader)

    for rank, answers in enumerate(pool.run(world, run)):
        assert [answer[0] for answer in answers] == [rank, rank]
        assert all("takes no part" in answer[1] for answer in answers)


@pytest.mark.world(2)
def test_loggers_learn_the_rank(pool, world):
    def run():
        from accel_core.logging import rank_info

        process.start()
        info = rank_info()
        return info.rank, info.world_size

    assert pool.run(world, run) == [(0, 2), (1, 2)]


def test_a_fake_group_of_512_is_adopted():
    """What large meshes are planned with: no other process, no communication."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=512)
    try:
        state = process.start(cpu=True)
        assert (state.topology.rank, state.topology.world_size, state.backend) == (3, 512, "fake")
    finally:
        process.reset()
        assert dist.is_initialized()
        dist.destroy_process_group()


def _rank_in_child(rank, port, answers):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2", MASTER_PORT=port
    )
    answers.put(process.start().collectives.all_gather_object(rank))
    process.reset()


@pytest.mark.world(1)
def test_ranks_forked_from_a_process_with_a_state_are_ranks(pool, world, free_port):
    """A notebook that looked at its state first must not make two lonely ranks."""

    def run():
        import multiprocessing

        assert process.start().topology.world_size == 1
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        children = [
            context.Process(target=_rank_in_child, args=(rank, str(free_port), answers)) for rank in range(2)
        ]
        for child in children:
            child.start()
        found = [answers.get(timeout=30) for _ in children]
        for child in children:
            child.join()
        answers.close()
        answers.join_thread()
        return found

    assert pool.run(world, run) == [[[0, 1], [0, 1]]]
