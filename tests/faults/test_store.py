"""A save that is killed, starved or corrupted anywhere leaves a checkpoint that loads, whole and unmixed.

ACCEL_FAULT_TRIES multiplies how many random moments and bytes are tried.
"""

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
from accel_state import process
from accel_state.checkpoint import CheckpointStore

TRIES = int(os.environ.get("ACCEL_FAULT_TRIES", "1"))
SAVER = Path(__file__).with_name("saver.py")
pytestmark = pytest.mark.timeout(600)


def load_saver():
    spec = importlib.util.spec_from_file_location("faults_saver", SAVER)
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


@pytest.fixture(scope="module")
def place():
    """Return a folder in memory where there is one: a killed process needs no disk, and disks are slow."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def template(place):
    """Return a folder with two checkpoints, of values 1 and 2."""
    folder = place / "template"
    saver.save(str(folder / "one"), 1, 4000)
    saver.save(str(folder / "two"), 2, 4000)
    return folder


@pytest.fixture
def runs(template, place):
    """Return a function that gives a fresh copy of the two checkpoints."""
    folder = place / "runs"

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        return folder

    return fresh


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def newest(folder):
    """Return the value of what ``latest`` gives; it must load, and must not be a mixture."""
    latest = CheckpointStore().latest(folder)
    assert latest is not None
    return saver.value_of(CheckpointStore().open(latest))


def goes_on(folder, target):
    """Save again, as a restarted run does: it works and nothing is left of the dead one."""
    saver.save(str(folder / "next"), 9, 100)
    assert newest(folder) == 9
    assert set(names(folder)) <= {"one", "two", "three", "next"}
    for name in names(folder):
        saver.value_of(CheckpointStore().open(folder / name))


@pytest.mark.parametrize("target", ["two", "three"], ids=["replaced", "new"])
@pytest.mark.parametrize("how", ["before", "half"])
def test_sigkill_at_every_operation(ask, runs, target, how):
    whole = ask(path=str(runs() / target), value=3)
    assert not whole["error"]
    outcomes = []
    for at in range(1, whole["count"] + 1):
        folder = runs()
        assert ask(path=str(folder / target), value=3, at=at, how=how)["killed"]
        outcomes.append(newest(folder))
        assert saver.value_of(CheckpointStore().open(folder / "one")) == 1
        # The path itself loads too, at every moment.
        assert target == "three" or saver.value_of(CheckpointStore().open(folder / "two")) in {2, 3}
        goes_on(folder, target)
    # The old one up to some moment, the new one from then on.
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {2, 3}
    assert len(outcomes) > 20


def test_sigkill_at_random_moments(ask, runs):
    size = 1_000_000
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
            goes_on(folder, target)
    assert set(outcomes) == {2, 3}


@pytest.mark.world(2)
@pytest.mark.parametrize("victim", [0, 1])
def test_sigkill_of_one_rank_at_its_operations(pool, world, runs, victim, monkeypatch):
    monkeypatch.setattr(pool, "grace", 0.3)

    def save(path, at):
        # Of the worker's own: what the module in the test process imported is not there.
        module = load_saver()
        files = module.Killing(at if process.start().collectives.rank == victim else 0, "half")
        store = CheckpointStore(process.start().collectives, files=files)
        with store.save(path) as sink:
            sink.tensors(f"rank_{store.group.rank}", {"a": torch.full((1000,), 3.0)})
            (sink.directory(f"engine_{store.group.rank}") / "part").write_bytes(b"3")
        return files.count

    counts = pool.run(world, save, runs() / "two", 0)
    operations = list(range(1, counts[victim] + 1))
    step = max(1, len(operations) // (8 * TRIES))
    for at in operations[::step]:
        folder = runs()
        failures = pool.failures(world, save, folder / "two", at)
        assert isinstance(failures[victim], WorkerDiedError)
        source = CheckpointStore().open_latest(folder)
        if source.names() == ["engine_0", "engine_1", "rank_0", "rank_1"]:
            assert all(source.tensors(f"rank_{rank}")["a"].eq(3).all() for rank in range(world))
        else:
            assert saver.value_of(source) == 2
        saver.value_of(CheckpointStore().open(folder / "one"))


def test_a_flipped_byte_is_found_every_time(runs, caplog):
    folder = runs()
    files = sorted(path for path in (folder / "two").rglob("*") if path.is_file())
    assert len(files) == 5
    chance, store, found = random.Random(1), CheckpointStore(), 0
    for _ in range(500 * TRIES):
        file = chance.choice(files)
        data = file.read_bytes()
        place, change = chance.randrange(len(data)), chance.randrange(1, 256)
        file.write_bytes(data[:place] + bytes([data[place] ^ change]) + data[place + 1 :])
        caplog.clear()
        with pytest.raises(CheckpointError):
            store.open(folder / "two")
        assert newest(folder) == 1
        assert "two" in caplog.text
        assert file.name in caplog.text
        found += 1
        file.write_bytes(data)
    assert found == 500 * TRIES
    assert newest(folder) == 2


def test_a_cut_or_grown_file_is_found(runs):
    folder = runs()
    for file in sorted(path for path in (folder / "two").rglob("*") if path.is_file()):
        data = file.read_bytes()
        for wrong in (b"", data[:-1], data + b"\0", data + data, bytes(len(data))):
            file.write_bytes(wrong)
            assert newest(folder) == 1, (file, len(wrong))
        file.unlink()
        assert newest(folder) == 1, file
        file.write_bytes(data)
    assert newest(folder) == 2


def test_a_limit_on_the_size_of_files(ask, runs):
    folder = runs()
    for limit in (0, 100, 1000, 8000):
        said = ask(path=str(folder / "two"), value=3, limit=limit)
        assert "File too large" in said["error"]
        assert "ulimit -f" in said["error"]
        assert names(folder) == ["one", "two"]
        assert newest(folder) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_somebody_else(ask, runs):
    folder = runs()
    for parent in (folder, *folder.parents):
        if not parent.stat().st_mode & 0o005:
            parent.chmod(parent.stat().st_mode | 0o005)
    for target in ("two", "three", "new/three"):
        said = ask(path=str(folder / target), value=3, user=65534)
        assert "Permission denied" in said["error"]
        assert str(folder) in said["error"]
        assert names(folder) == ["one", "two"]
    assert newest(folder) == 2


def private_disk(folder, size):
    """Return the start of a command that runs with a small file system of its own at ``folder``."""
    script = f'mount -t tmpfs -o size={size} none {folder} && exec "$@"'
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]


def test_a_full_disk(tmp_path):
    disk = private_disk(tmp_path, "1600k")
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
    failed = [error for error, _, _ in outcomes if error]
    # With the whole disk it works, with less room it fails at one write after the other.
    assert not outcomes[0][0]
    assert len(failed) > 50
    for error, value, left in outcomes:
        assert value == (1 if error else 2)
        assert left == ["one"]
        assert not error or "No space left on device" in error
    told = [error for error in failed if "where:" in error]
    assert "bytes are free" in told[-1]
    assert len({error.splitlines()[1] for error in told}) > 2
