"""A save in the background that is killed or starved anywhere leaves the checkpoint before it, whole."""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from accel_core.errors import CheckpointError
from accel_core.testing import WorkerDiedError
from accel_core.testing.ports import free_port
from accel_state import process
from accel_state.checkpoint import BackgroundSaver, CheckpointStore

TRIES = int(os.environ.get("ACCEL_FAULT_TRIES", "1"))
SAVER = Path(__file__).with_name("saver_async.py")
pytestmark = pytest.mark.timeout(600)


def load_saver():
    spec = importlib.util.spec_from_file_location("faults_saver", SAVER.with_name("saver.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


saver = load_saver()


@pytest.fixture(scope="module")
def ask():
    """Return a function that has one save done in a process of its own."""
    with subprocess.Popen(
        [sys.executable, str(SAVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:

        def call(**command):
            server.stdin.write(json.dumps(command) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield call
        server.stdin.close()


@pytest.fixture
def runs():
    """Return a function that gives a fresh folder with two checkpoints, of values 1 and 2, in memory."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        template, folder = Path(name, "template"), Path(name, "runs")
        for value, target in ((1, "one"), (2, "two")):
            saver.save(str(template / target), value, 4000)

        def fresh():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(template, folder)
            return folder

        yield fresh


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def newest(folder):
    return saver.value_of(CheckpointStore().open_latest(folder))


def goes_on(folder):
    """Save again, as a restarted run does: nothing of the dead one is left."""
    saver.save(str(folder / "next"), 9, 100)
    assert newest(folder) == 9
    assert set(names(folder)) <= {"one", "two", "three", "next"}


@pytest.mark.parametrize("how", ["before", "half"])
def test_sigkill_at_every_operation(ask, runs, how):
    whole = ask(path=str(runs() / "three"), value=3)
    assert not whole["error"]
    outcomes = []
    for at in range(1, whole["count"] + 1):
        folder = runs()
        assert ask(path=str(folder / "three"), value=3, at=at, how=how)["killed"]
        outcomes.append(newest(folder))
        goes_on(folder)
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {2, 3}
    assert len(outcomes) > 20


def test_sigkill_at_random_moments(ask, runs):
    size = 200_000
    took = max(ask(path=str(runs() / "three"), value=3, size=size)["took"] for _ in range(3))
    moments = random.Random(0)
    outcomes = []
    for number in range(200 * TRIES):
        folder, target = runs(), "two" if number % 2 else "three"
        # However busy the machine is, some are killed at once and some not at all.
        ends = {0: {"delay": 0}, 1: {}}.get(number % 20, {"delay": moments.uniform(0, took * 1.3)})
        ask(path=str(folder / target), value=3, size=size, **ends)
        outcomes.append(newest(folder))
        if number % 10 == 0:
            goes_on(folder)
    assert set(outcomes) == {2, 3}


@pytest.mark.world(2)
@pytest.mark.parametrize("victim", [0, 1])
def test_sigkill_of_one_rank(pool, world, runs, victim, monkeypatch):
    monkeypatch.setattr(pool, "grace", 5)

    def save(path, at):
        group = process.start().collectives
        files = load_saver().Killing(at if group.rank == victim else 0, "half")
        background = BackgroundSaver(lambda channel: CheckpointStore(channel, files=files), group)
        snapshot = background.snapshot(path)
        snapshot.tensors(f"rank_{group.rank}", {"a": torch.full((1000,), 3.0)})
        background.submit(path, snapshot)
        background.wait()
        return files.count

    counts = pool.run(world, save, runs() / "two", 0)
    operations = list(range(1, counts[victim] + 1))
    for at in operations[:: max(1, len(operations) // (4 * TRIES))]:
        folder = runs()
        failures = pool.failures(world, save, folder / "two", at)
        assert isinstance(failures[victim], WorkerDiedError)
        other = failures[1 - victim]
        assert isinstance(other, CheckpointError), other
        assert "two was not saved in the background" in str(other) or "what was to follow" in str(other)
        source = CheckpointStore().open_latest(folder)
        if source.names() == ["rank_0", "rank_1"]:
            assert all(source.tensors(f"rank_{rank}")["a"].eq(3).all() for rank in range(world))
        else:
            assert saver.value_of(source) == 2
        assert saver.value_of(CheckpointStore().open(folder / "one")) == 1


def test_a_limit_on_the_size_of_files(ask, runs):
    folder = runs()
    for limit in (4000, 8000):
        said = ask(path=str(folder / "two"), value=3, limit=limit)
        assert "File too large" in said["error"]
        assert names(folder) == ["one", "two"]
        assert newest(folder) == 2


def test_a_full_disk(tmp_path):
    script = f'mount -t tmpfs -o size=1600k none {tmp_path} && exec "$@"'
    disk = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    try:
        probe = subprocess.run([*disk, "true"], capture_output=True, check=False, timeout=60)
    except FileNotFoundError:
        pytest.skip("no program to mount a small file system with")
    if probe.returncode:
        pytest.skip(f"no small file system can be mounted here: {probe.stderr.decode().strip()}")
    done = subprocess.run(
        [*disk, sys.executable, str(SAVER), "fill", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert not outcomes[0][0]
    assert sum("one was not saved in the background" in error for error, _, _ in outcomes) > 30
    for error, value, left in outcomes:
        assert value == (1 if error else 2)
        assert left == ["one"]
        assert not error or "No space left on device" in error


PROGRAM = '''
import os, resource, signal, sys, threading, time
import torch
from accel_state import process
from accel_state.checkpoint import BackgroundSaver, CheckpointStore, Files

class Slow(Files):
    def write(self, file, data):
        time.sleep(60 if how == "interrupt" else 0.05)
        return super().write(file, data)

how, path = sys.argv[1:]
group = process.start(cpu=True).collectives
if how == "limit" and group.rank == 1:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

def train():
    """Begin to save, and end: the saver and the state are gone when this returns."""
    saver = BackgroundSaver(lambda channel: CheckpointStore(channel, files=Slow()), group)
    snapshot = saver.snapshot(path)
    snapshot.tensors(f"r{group.rank}", {"w": torch.full((1_000_000,), 3.0)})
    saver.submit(path, snapshot, step=3)
    if group.rank == 0 and how == "raise":
        raise ValueError("the program's own")
    if group.rank == 0 and how == "exit":
        sys.exit(3)
    if how == "interrupt":
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

train()
'''


@pytest.mark.parametrize("how", ["return", "raise", "exit", "limit", "interrupt"])
def test_the_end_of_the_program_waits_for_the_commit(tmp_path, how):
    """Interpreters of their own: what a pool's worker does at its end is not what a program does."""
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    variables |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, how, str(tmp_path / "one")]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | variables | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = [each.communicate(timeout=120)[1] for each in ranks]
    assert [each.returncode for each in ranks] == [{"raise": 1, "exit": 3}.get(how, 0), 0], said
    source = CheckpointStore().open_latest(tmp_path)
    if how == "limit":
        assert "Rank 1 could not save its part: Could not write" in said[0]
    if how in {"limit", "interrupt"}:
        message = {"limit": "File too large", "interrupt": "Interrupted: the checkpoint"}[how]
        assert all(message in each and f"{tmp_path}/one" in each for each in said), said
        assert source is None
        return
    assert source is not None
    assert [source.tensors(f"r{rank}")["w"].sum().item() for rank in (0, 1)] == [3e6, 3e6]
    assert said[1] == ""
