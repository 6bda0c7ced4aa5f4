"""The worker pool, with real processes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from accel_core.errors import CollectiveError, ConfigError
from accel_core.testing import (
    RankStoppedError,
    RemoteError,
    WorkerDiedError,
    WorkerError,
    WorkerPool,
    free_port,
)

pytest.importorskip("torch", exc_type=ImportError)
pytest.importorskip("cloudpickle")


class Local(Exception):
    """Defined in a module that workers cannot import."""


class Unpicklable(Exception):
    def __init__(self):
        super().__init__("cannot travel")
        self.lock = threading.Lock()


def rank():
    return int(os.environ["RANK"])


def describe(extra):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    return [os.environ[name] for name in names], os.getpid(), extra


def summed():
    import torch
    import torch.distributed as dist

    value = torch.tensor([1.0 + dist.get_rank()])
    dist.all_reduce(value)
    return value.item()


@pytest.mark.world(1, 2, 4)
def test_every_rank_knows_its_place(pool, world):
    results = pool.run(world, describe, "x")
    sizes = str(world)
    assert [place for place, _, _ in results] == [
        [str(r), sizes, str(r), sizes, "127.0.0.1"] for r in range(world)
    ]
    assert len({pid for _, pid, _ in results} | {os.getpid()}) == world + 1
    assert [extra for _, _, extra in results] == ["x"] * world


@pytest.mark.world(2, 4)
def test_a_group_talks(pool, world):
    assert pool.run_in_group(world, summed) == [sum(range(1, world + 1))] * world


def test_code_under_test_makes_its_own_group(pool):
    def function():
        import torch.distributed as dist

        assert not dist.is_initialized()
        dist.init_process_group("gloo")
        return summed()

    assert pool.run(2, function) == [3.0, 3.0]


def test_thirty_groups_in_a_row_use_the_same_processes(pool):
    pool.run(2, rank)
    pids = pool.pids
    for _ in range(30):
        assert pool.run_in_group(2, summed) == [3.0, 3.0]
    assert pool.pids == pids


def test_functions_of_every_kind_travel(pool):
    offset = 10
    assert pool.run(2, rank) == [0, 1]
    assert pool.run(2, lambda: rank() + offset) == [10, 11]
    assert pool.run(2, partial(max, 5), 3) == [5, 5]
    assert pool.run(2, Call(20)) == [20, 21]
    assert pool.run(2, Call(30).__call__) == [30, 31]


class Call:
    def __init__(self, value):
        self.value = value

    def __call__(self):
        return self.value + rank()


def test_classes_of_the_test_module_come_back_as_themselves(pool):
    assert all(type(result) is Call for result in pool.run(2, lambda: Call(rank())))
    assert type(pool.failures(2, raising, Local("x"))[1]) is Local


def test_a_big_payload(pool):
    import torch

    tensor = torch.arange(4_000_000, dtype=torch.float64)
    for result in pool.run(2, lambda value: value * (1 + rank()), tensor):
        assert result.shape == tensor.shape
    assert torch.equal(result, tensor * 2)


def test_variables_of_one_call(pool):
    read = lambda: os.environ.get("FLAVOUR")  # noqa: E731
    assert pool.run(2, read, env={"FLAVOUR": "plain"}) == ["plain", "plain"]
    assert pool.run(2, read, env=[{"FLAVOUR": "sweet"}, {}]) == ["sweet", None]
    assert pool.run(2, rank, env=[{"RANK": "5"}, {"RANK": "6"}]) == [5, 6]


def test_settings_of_the_calling_process_stay_out(monkeypatch):
    foreign = ["SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"]
    for variable in (*foreign, "HARMLESS"):
        monkeypatch.setenv(variable, "3")
    with WorkerPool() as own:
        [seen] = own.run(1, lambda: dict(os.environ))
        assert seen["HARMLESS"] == "3"
        assert not set(foreign) & set(seen)
        pids = own.pids
    assert not any(map(alive, pids))
    own.close()


def test_bad_arguments_name_the_value(pool):
    with pytest.raises(ConfigError, match="world=0"):
        pool.run(0, rank)
    with pytest.raises(ConfigError, match="env='1 mappings'"):
        pool.run(2, rank, env=[{}])


# -- what a call leaves behind -------------------------------------------------------------


def test_the_worker_is_as_it_was(pool, tmp_path):
    def look():
        import logging
        import random
        import warnings

        import numpy as np
        import torch

        return {
            "env": {k: v for k, v in os.environ.items() if k != "MASTER_PORT"},
            "cwd": str(Path.cwd()),
            "path": list(sys.path),
            "argv": list(sys.argv),
            "dtype": str(torch.get_default_dtype()),
            "grad": torch.is_grad_enabled(),
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "numbers": (random.random(), float(np.random.rand()), torch.rand(1).item()),
            "group": torch.distributed.is_initialized(),
            "filters": [str(item) for item in warnings.filters],
            "level": logging.getLogger().level,
        }

    def spoil():
        import logging
        import warnings

        import torch
        import torch.distributed as dist

        os.environ["LEFT"] = "1"
        del os.environ["HOME"]
        os.chdir("/")
        sys.path.insert(0, "/nowhere")
        sys.argv.append("--left")
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(9)
        warnings.simplefilter("ignore")
        logging.getLogger().setLevel(logging.DEBUG)
        dist.init_process_group("gloo")

    before = pool.run(2, look)
    pool.run(2, spoil)
    assert pool.run(2, look) == before
    assert before[0]["numbers"] == before[1]["numbers"]


def test_a_thread_left_running_fails_the_call_and_the_worker_is_replaced(pool):
    def leave():
        threading.Thread(target=time.sleep, args=(60,), name="forgotten").start()

    pool.run(2, rank)
    old = pool.pids[:2]
    with pytest.raises(WorkerError, match="thread 'forgotten' still runs"):
        pool.run(2, leave)
    assert pool.run(2, rank) == [0, 1]
    assert not set(old) & set(pool.pids)


def test_what_ranks_print_is_kept_per_call(pool):
    pool.run(2, lambda: print("from", rank()))
    assert pool.output == ["from 0\n", "from 1\n"]
    pool.run(2, lambda: os.system("echo from a child"))
    assert pool.output == ["from a child\n"] * 2


# -- failures --------------------------------------------------------------------------------


def raising(error, *, ranks=(0, 1, 2, 3)):
    print(f"printed by {rank()}")
    if rank() in ranks:
        raise error
    return rank()


def test_an_error_carries_every_failed_rank(pool):
    error = CollectiveError("shapes differ", per_rank=[(1,), (2,)], fix="pad first")
    with pytest.raises(WorkerError, match="failed on rank 1, 3 of 4") as caught:
        pool.run(4, partial(raising, ranks=(1, 3)), error)
    text = str(caught.value)
    for part in ("--- rank 1 ---", "--- rank 3 ---", "Traceback", "in raising", "pad first", "printed by 3"):
        assert part in text
    assert "printed by 0" not in text
    cause = caught.value.__cause__
    assert isinstance(cause, CollectiveError)
    assert cause.per_rank == ((1,), (2,))
    assert set(caught.value.failures) == {1, 3}
    assert caught.value.first == 1


def test_failures_lists_ranks_in_order(pool):
    found = pool.failures(4, partial(raising, ranks=(2,)), ValueError("only two"))
    assert [type(item) for item in found] == [type(None), type(None), ValueError, type(None)]
    assert str(found[2]) == "only two"
    assert pool.failures(2, rank) == [None, None]


def test_exit_is_a_failure_too(pool):
    found = pool.failures(2, sys.exit, 3)
    assert [type(item) for item in found] == [SystemExit, SystemExit]
    assert found[0].code == 3


def test_an_error_that_cannot_travel_keeps_its_text(pool):
    def fail():
        raise Unpicklable

    found = pool.failures(2, fail)
    assert all(isinstance(item, RemoteError) for item in found)
    assert "cannot travel" in str(found[0])


def test_a_result_that_cannot_travel_is_reported(pool):
    with pytest.raises(WorkerError, match="pickle"):
        pool.run(2, threading.Lock)


def test_the_worker_lives_on_after_an_error(pool):
    pool.run(2, rank)
    old = pool.pids
    pool.failures(2, raising, ValueError("x"))
    assert pool.pids == old


def wait_for_rank_one():
    import torch.distributed as dist

    if dist.get_rank() == 1:
        raise ValueError("rank one gives up")
    dist.barrier()


def test_ranks_that_wait_for_a_failed_one_are_stopped_and_replaced():
    with WorkerPool(grace=0.5) as own:
        own.run(2, rank)
        old = own.pids
        with pytest.raises(WorkerError, match="rank one gives up") as caught:
            own.run_in_group(2, wait_for_rank_one)
        assert isinstance(caught.value.__cause__, ValueError)
        assert not caught.value.timed_out
        stopped = caught.value.failures[0].exception
        assert isinstance(stopped, RankStoppedError)
        assert "after rank 1 had failed" in str(stopped)
        assert "wait_for_rank_one" in stopped.stack
        assert own.run_in_group(2, summed) == [3.0, 3.0]
        # Only the one that hung was replaced.
        assert set(own.pids) & set(old) == {old[1]}


def test_a_timeout_shows_the_stack_of_every_rank(pool):
    def nap_until_killed():
        print("going to sleep")
        time.sleep(60)

    with pytest.raises(WorkerError, match="within 0.5 s") as caught:
        pool.run(2, nap_until_killed, timeout=0.5)
    assert caught.value.timed_out
    for failure in caught.value.failures.values():
        assert isinstance(failure.exception, RankStoppedError)
        assert "nap_until_killed" in failure.text
        assert failure.output == "going to sleep\n"
    assert pool.run(2, rank) == [0, 1]


def test_only_the_slow_rank_is_stopped_by_a_timeout(pool):
    found = pool.failures(2, lambda: time.sleep(60) if rank() else None, timeout=0.5)
    assert found[0] is None
    assert isinstance(found[1], RankStoppedError)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_is_reported_with_its_signal(pool, number):
    def die():
        print("last words")
        if rank() == 1:
            os.kill(os.getpid(), number)

    with pytest.raises(WorkerError, match=signal.Signals(number).name) as caught:
        pool.run(2, die)
    failure = caught.value.failures[1]
    assert isinstance(failure.exception, WorkerDiedError)
    assert failure.exception.status == -number
    assert "last words" in failure.output
    assert pool.run(2, rank) == [0, 1]


def test_a_worker_that_exits_is_reported_with_its_code(pool):
    found = pool.failures(2, os._exit, 7)
    assert [(type(item), item.status) for item in found] == [(WorkerDiedError, 7)] * 2


def test_death_is_seen_although_a_child_holds_the_connection(pool):
    def die():
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        os._exit(5)

    begun = time.monotonic()
    found = pool.failures(1, die, timeout=20)
    assert found[0].status == 5
    # Not a measurement: had death not been seen, the call would have ended with the timeout.
    assert time.monotonic() - begun < 20


def test_a_worker_that_died_between_calls_is_replaced(pool):
    pool.run(2, rank)
    os.kill(pool.pids[1], signal.SIGKILL)
    time.sleep(0.2)
    assert pool.run(2, rank) == [0, 1]


def test_an_interrupted_call_replaces_its_workers(pool):
    pool.run(2, rank)
    old = pool.pids[:2]
    previous = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.run(2, time.sleep, 30)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert pool.run(2, rank) == [0, 1]
    assert not set(old) & set(pool.pids)


# -- processes and ports ---------------------------------------------------------------------


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
def test_no_process_outlives_a_killed_session(tmp_path):
    code = textwrap.dedent("""
        import os, time
        from accel_core.testing import WorkerPool
        pool = WorkerPool()
        pool.run(2, int)
        print(*pool.pids, pool._server._process.pid, flush=True)
        pool.run(2, time.sleep, 60)
    """)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 3
        assert all(map(alive, pids))
        process.kill()
    limit = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_ports_differ_and_are_free():
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50


def test_another_session_takes_other_ports():
    code = "from accel_core.testing import free_port; print(free_port())"
    others = [int(subprocess.check_output([sys.executable, "-c", code])) for _ in range(2)]
    mine = range(free_port() // 200 * 200, free_port() // 200 * 200 + 200)
    assert not set(others) & set(mine)
