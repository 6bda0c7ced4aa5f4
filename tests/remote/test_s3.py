"""Checkpoints in a store that speaks S3: moto's server, as a process, behind a proxy that breaks things."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
import uuid
from pathlib import Path

import pytest

pytest.importorskip("s3fs", reason="the driver of s3:// is not installed; nox -s remote has it")
pytest.importorskip("moto", reason="no S3 server is installed; nox -s remote has one")

import s3fs
import torch

from accel_core.errors import CheckpointError
from accel_core.testing import ports
from accel_state import process
from accel_state.checkpoint import RemoteStore, child, store_for
from accel_state.checkpoint.remote.objects import Objects

pytestmark = [
    pytest.mark.timeout(300),
    # The driver keeps a thread and its connections for the life of the process.
    pytest.mark.leaks("threads", "files", reason="the event loop of fsspec lives as long as the process"),
]


def load(name):
    spec = importlib.util.spec_from_file_location(f"remote_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Proxy = load("proxy").Proxy
KEYS = {"key": "test", "secret": "test"}


@pytest.fixture(scope="module")
def server():
    """Return the port of an S3 server."""
    port = ports.free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            wait_for(port)
            yield port
        finally:
            running.kill()


def wait_for(port):
    limit = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
        except OSError:
            assert time.monotonic() < limit
            time.sleep(0.1)
        else:
            return


@pytest.fixture(scope="module")
def through(server):
    own = Proxy(server)
    yield own
    own.close()


@pytest.fixture
def proxy(through):
    through.clear()
    yield through
    through.clear()


@pytest.fixture
def s3(server):
    return s3fs.S3FileSystem(endpoint_url=f"http://127.0.0.1:{server}", use_listings_cache=False, **KEYS)


@pytest.fixture
def run(s3):
    bucket = uuid.uuid4().hex
    s3.mkdir(bucket)
    return f"s3://{bucket}/run/checkpoints"


def options(url):
    # One try each, so that what is repeated is repeated by us.
    quick = {"retries": {"max_attempts": 0}, "connect_timeout": 5, "read_timeout": 5}
    return {**KEYS, "endpoint_url": url, "config_kwargs": quick}


def make(url, tmp_path, group=None, patience=30.0, kind=Objects):
    return RemoteStore(group, local=tmp_path / "local", objects=kind(options(url), patience))


@pytest.fixture
def store(proxy, tmp_path, monkeypatch):
    monkeypatch.setattr("accel_state.checkpoint.remote.retry._FIRST_WAIT", 0.01)
    # The driver's own repetitions hide what is to be seen.
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    own = make(proxy.url, tmp_path)
    yield own
    own.close()


def saved(store, uri, value=1):
    with store.save(uri, step=value) as sink:
        sink.tensors("model", {"w": torch.full((5000,), float(value))})
        sink.json("run", {"value": value})
        (sink.directory("engine") / "state.bin").write_bytes(bytes([value]) * 999)
    return uri


def value_of(source):
    found = {source.json("run")["value"], source.manifest.step}
    found |= {int(each) for each in source.tensors("model")["w"].unique()}
    found |= set((source.directory("engine") / "state.bin").read_bytes())
    assert len(found) == 1, f"mixed: {found}"
    return found.pop()


def test_save_list_load_rotate_remove(store, run, s3):
    assert store.listed(run) == []
    assert store.latest(run) is None
    for value in range(3):
        saved(store, child(run, f"checkpoint_{value}"), value)
    uris = [f"{run}/checkpoint_{value}" for value in range(3)]
    assert store.listed(run) == uris
    assert store.latest(run) == uris[2]
    assert [value_of(store.open(uri)) for uri in uris] == [0, 1, 2]
    saved(store, uris[1], 7)
    assert store.listed(run) == [uris[0], uris[2], uris[1]]
    assert value_of(store.open(uris[1])) == 7
    assert store.rotate(run, 2) == [uris[0]]
    store.remove(uris[2])
    assert store.listed(run) == [uris[1]]
    assert len(s3.find(run)) == 5
    store.remove(uris[1])
    assert s3.find(run) == []


def test_the_variables_of_the_driver_are_enough(run, proxy, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    store = store_for(run)
    saved(store, f"{run}/one")
    assert value_of(store.open_latest(run)) == 1
    assert list(tmp_path.glob("accel-checkpoints-*/*"))


@pytest.mark.parametrize("fault", ["500", "503", "drop"])
def test_what_passes_is_repeated(store, run, proxy, fault):
    # Every request of its own fails once.
    proxy.on(".", fault, 1, each=True)
    saved(store, f"{run}/one", 5)
    assert value_of(store.open_latest(run)) == 5
    assert len(proxy.seen) > 20


def test_a_download_that_breaks_off_is_repeated(store, run, proxy):
    saved(store, f"{run}/one", 5)
    proxy.on("GET .*data-", "cut", 1, each=True)
    assert value_of(store.open(f"{run}/one")) == 5


def test_a_byte_that_changes_on_the_way_is_fetched_again(store, run, proxy):
    saved(store, f"{run}/one", 5)
    proxy.on("GET .*safetensors", "flip", 1)
    assert value_of(store.open(f"{run}/one")) == 5
    proxy.clear()
    proxy.on("GET .*safetensors", "flip")
    # For ever: the store has other bytes than its own checksum says.
    with pytest.raises(CheckpointError, match=r"(?s)Could not read after 3 tries: .*model\.safetensors"):
        store.open(f"{run}/one")
    assert store.latest(run) is None


def test_a_byte_that_changed_in_the_store_is_found(store, run, s3):
    saved(store, f"{run}/one", 1)
    saved(store, f"{run}/two", 2)
    for name in s3.find(f"{run}/two"):
        data = s3.cat_file(name)
        middle = len(data) // 2
        s3.pipe_file(name, data[:middle] + bytes([data[middle] ^ 8]) + data[middle + 1 :])
        with pytest.raises(CheckpointError) as caught:
            store.open(f"{run}/two")
        assert name.rpartition("/")[2] in str(caught.value)
        assert value_of(store.open_latest(run)) == 1
        s3.pipe_file(name, b"")
        with pytest.raises(CheckpointError):
            store.open(f"{run}/two")
        assert value_of(store.open_latest(run)) == 1
        s3.pipe_file(name, data)
    assert value_of(store.open_latest(run)) == 2


def test_a_denial_is_an_error_at_once(store, run, proxy, s3):
    saved(store, f"{run}/one", 1)
    proxy.clear()
    proxy.on("PUT .*data-.*(state.bin|upload)", "403")
    begin = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        saved(store, f"{run}/two")
    assert time.monotonic() - begin < 20
    assert len([each for each in proxy.seen if "PUT" in each and "state.bin" in each]) == 1
    for said in (
        "Could not upload",
        "PermissionError",
        "engine/state.bin",
        "give these credentials the right",
    ):
        assert said in str(caught.value)
    assert store.listed(run) == [f"{run}/one"]
    assert len(s3.find(run)) == 5


def test_a_store_that_stays_broken_is_given_up(run, proxy, tmp_path, store):
    hasty = make(proxy.url, tmp_path, patience=0.5)
    saved(hasty, f"{run}/one")
    proxy.on(r"PUT .*commit-", "503")
    with pytest.raises(CheckpointError, match=r"Could not write after \d+ tries"):
        saved(hasty, f"{run}/two")
    proxy.on(".", "503")
    with pytest.raises(CheckpointError, match=r"Could not list the folder after \d+ tries"):
        hasty.latest(run)
    proxy.clear()
    assert hasty.listed(run) == [f"{run}/one"]


def test_a_bucket_that_is_not_there_is_not_made(store, s3):
    with pytest.raises(CheckpointError, match="create the bucket"):
        saved(store, "s3://no-such-bucket-of-ours/run/one")
    # Nor taken for an empty one: a run would begin anew.
    with pytest.raises(CheckpointError, match="NoSuchBucket|bucket does not exist"):
        store.latest("s3://no-such-bucket-of-ours/run")
    assert not s3.exists("no-such-bucket-of-ours")
    with pytest.raises(CheckpointError, match="name a folder inside it"):
        store.begin("s3://bucket")


def test_what_another_run_commits_is_seen(store, run, proxy, tmp_path):
    other = make(proxy.url, tmp_path)
    for value in range(3):
        saved(other if value % 2 else store, f"{run}/c{value}", value)
        assert len(store.listed(run)) == len(other.listed(run)) == value + 1


CHILD = textwrap.dedent(
    """
    import json, os, signal, sys, torch
    from accel_state.checkpoint import RemoteStore
    from accel_state.checkpoint.remote.objects import Objects

    given = json.loads(sys.argv[1])

    class Killing(Objects):
        def write(self, uri, data):
            if "/commit-" in uri:
                os.kill(os.getpid(), signal.SIGKILL)
            super().write(uri, data)

    store = RemoteStore(local=given["local"], objects=Killing(given["options"]))
    with store.save(given["uri"], step=2) as sink:
        sink.tensors("model", {"w": torch.full((5000,), 2.0)})
        sink.json("run", {"value": 2})
        (sink.directory("engine") / "state.bin").write_bytes(bytes([2]) * 999)
    """
)


def test_kill_9_between_data_and_record_leaves_the_one_before(store, run, proxy, tmp_path, s3):
    saved(store, f"{run}/one", 1)
    given = {"options": options(proxy.url), "uri": f"{run}/two", "local": str(tmp_path / "x")}
    command = [sys.executable, "-c", CHILD, json.dumps(given)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(s3.find(f"{run}/two")) == 4
    assert value_of(store.open_latest(run)) == 1
    with pytest.raises(CheckpointError, match="was not committed"):
        store.open(f"{run}/two")
    # Its stage lies on this machine until the next comes.
    assert list(tmp_path.glob("x/*/write-*"))
    saved(make(proxy.url, tmp_path, kind=Objects), f"{run}/two", 3)
    assert value_of(store.open_latest(run)) == 3
    assert len(s3.find(f"{run}/two")) == 5


LEAVING = textwrap.dedent(
    """
    import json, sys, torch
    from accel_state.checkpoint import BackgroundSaver, RemoteStore
    from accel_state.checkpoint.remote.objects import Objects

    given = json.loads(sys.argv[1])
    objects = Objects(given["options"], patience=5)
    saver = BackgroundSaver(lambda group: RemoteStore(group, local=given["local"], objects=objects))
    snapshot = saver.snapshot()
    snapshot.tensors("model", {"w": torch.full((5000,), 2.0)})
    snapshot.json("run", {"value": 2})
    (snapshot.directory("engine") / "state.bin").write_bytes(bytes([2]) * 999)
    saver.submit(given["uri"], snapshot, step=2)
    """
)


def test_a_program_ends_when_its_last_save_is_there(store, run, proxy, tmp_path):
    # By name: to look it up the driver starts a thread, which an interpreter that ends does not allow.
    named = options(proxy.url.replace("127.0.0.1", "localhost"))
    given = {"options": named, "uri": f"{run}/last", "local": str(tmp_path / "x")}
    command = [sys.executable, "-c", LEAVING, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert value_of(store.open_latest(run)) == 2


def test_a_manifest_that_points_elsewhere_is_refused(store, run, s3, tmp_path):
    from dataclasses import replace

    from accel_state.checkpoint.hashing import digest

    saved(store, f"{run}/one")
    source = store.open(f"{run}/one")
    for path in ("../../../evil", "/etc/passwd"):
        text = source.manifest.encode().replace(b'"engine/state.bin"', json.dumps(path).encode())
        first, rest = text.split(b"\n", 1)
        text = re.sub(rb'"hash": "\w+"', b'"hash": "' + digest(rest).encode() + b'"', first) + b"\n" + rest
        commit = replace(source.commit, manifest_size=len(text), manifest_hash=digest(text))
        s3.pipe_file(f"{run}/one/{commit.folder}/manifest.json", text)
        s3.pipe_file(f"{run}/one/{commit.name}", commit.encode())
        with pytest.raises(CheckpointError, match="not a path inside the checkpoint"):
            store.open(f"{run}/one")


# -- two processes ---------------------------------------------------------------------------------


def save_all(url, tmp_path, uri, value):
    store = make(url, tmp_path, process.start().collectives)
    rank = store.group.rank
    with store.save(uri, step=value) as sink:
        sink.tensors(f"rank_{rank}/shard", {"w": torch.full((1000, rank + 1), float(value))})
        (sink.directory("engine") / f"part_{rank}.bin").write_bytes(bytes([value]) * (rank + 1))
        if rank == 0:
            sink.json("run", {"value": value})
    return store.listed(uri.rpartition("/")[0])


@pytest.mark.world(2)
def test_two_save_and_one_or_two_load(pool, run, proxy, tmp_path, s3):
    for value in (1, 2):
        uris = [f"{run}/c{each}" for each in range(1, value + 1)]
        assert pool.run(2, save_all, proxy.url, tmp_path, uris[-1], value) == [uris] * 2
    one = make(proxy.url, tmp_path)
    source = one.open_latest(run)
    assert (source.path, source.manifest.world_size) == (f"{run}/c2", 2)
    for rank in range(2):
        assert source.tensors(f"rank_{rank}/shard")["w"].equal(torch.full((1000, rank + 1), 2.0))
        assert (source.directory("engine") / f"part_{rank}.bin").read_bytes() == bytes([2]) * (rank + 1)
    del source

    url = proxy.url

    def load():
        store = make(url, tmp_path, process.start().collectives)
        source = store.open_latest_together(run)
        other = 1 - store.group.rank
        return source.path, source.tensors(f"rank_{other}/shard")["w"].sum().item()

    proxy.seen.clear()
    assert pool.run(2, load) == [(f"{run}/c2", 4000.0), (f"{run}/c2", 2000.0)]
    # Every file came once.
    assert len([each for each in proxy.seen if "GET" in each and "safetensors" in each]) == 2
    name = next(each for each in s3.find(f"{run}/c2") if "rank_1" in each)
    s3.pipe_file(name, s3.cat_file(name)[:-1] + b"\1")
    assert pool.run(2, load) == [(f"{run}/c1", 2000.0), (f"{run}/c1", 1000.0)]


@pytest.mark.world(2)
def test_a_denial_to_one_rank_fails_all(pool, run, proxy, tmp_path, s3):
    pool.run(2, save_all, proxy.url, tmp_path, f"{run}/c1", 1)
    before = s3.find(run)
    proxy.on("PUT .*part_1", "403")
    failures = pool.failures(2, save_all, proxy.url, tmp_path, f"{run}/c1", 2)
    assert all("PermissionError" in str(each) and "part_1.bin" in str(each) for each in failures), failures
    assert "Rank 1 could not upload its part" in str(failures[0])
    assert s3.find(run) == before
