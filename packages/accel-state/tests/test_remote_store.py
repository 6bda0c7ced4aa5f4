"""Checkpoints behind URIs, over the two stores that every machine has: its memory and its files."""

import errno
import re
import time
import typing
import uuid
from pathlib import Path

import fsspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel_core import plugins
from accel_core.errors import CheckpointError, NotInstalledError, UnknownNameError
from accel_core.protocols import LonelyCollectives, StateSink, StateSource
from accel_core.testing.conformance import CheckpointIOConformance
from accel_state import process
from accel_state.checkpoint import CheckpointStore, RemoteStore, address, child, is_uri, resolve, store_for
from accel_state.checkpoint.remote import record, trouble
from accel_state.checkpoint.remote.objects import Objects


class ByPath(RemoteStore):
    """The remote store with paths of the file system, as the suite wants them."""

    def begin(self, path, *, step=None):
        return super().begin(uri_of(path), step=step)

    def open(self, path, *, verify="hashes"):
        return super().open(uri_of(path), verify=verify)

    def latest(self, directory):
        return super().latest(uri_of(directory))

    def listed(self, directory):
        return super().listed(uri_of(directory))

    def remove(self, path):
        super().remove(uri_of(path))


def uri_of(path):
    return path if is_uri(path) else f"file://{path}"


class TestFiles(CheckpointIOConformance):
    @pytest.fixture
    def store(self, tmp_path_factory):
        assert plugins.find(plugins.CHECKPOINTS, "fsspec") is RemoteStore
        own = ByPath(LonelyCollectives(), local=tmp_path_factory.mktemp("local"))
        yield own
        own.close()


@pytest.fixture
def store(tmp_path):
    own = RemoteStore(local=tmp_path / "local", patience=0.5)
    yield own
    own.close()


@pytest.fixture
def run():
    """Return a folder in memory that no other test has."""
    uri = f"memory://{uuid.uuid4().hex}/run"
    yield uri
    with_fs = fsspec.filesystem("memory")
    if with_fs.exists(uri):
        with_fs.rm(uri, recursive=True)


def saved(store, uri, value=1):
    with store.save(uri, step=value) as sink:
        sink.tensors("model", {"w": torch.full((50,), float(value)), "none": torch.zeros(0)})
        sink.json("run", {"value": value})
        (sink.directory("engine") / "state.bin").write_bytes(bytes([value]) * 99)
    return uri


def value_of(source):
    found = {source.json("run")["value"], source.manifest.step, source.commit.step}
    found |= {int(each) for each in source.tensors("model")["w"]}
    found |= set((source.directory("engine") / "state.bin").read_bytes())
    assert len(found) == 1, f"mixed: {found}"
    return found.pop()


def objects(uri):
    return sorted(name.split("/run/", 1)[1] for name in fsspec.filesystem("memory").find(uri))


def rooms(tmp_path):
    return sorted(each.name for each in tmp_path.glob("local/*/*"))


def test_what_lies_in_the_store(store, run, tmp_path):
    sink = store.begin(run + "/x")
    assert isinstance(sink, StateSink)
    store.abort(sink)
    saved(store, f"{run}/one")
    names = [re.sub(r"\d{8}T\d{6}Z-[0-9a-f]{12}", "TOKEN", name) for name in objects(run)]
    assert names == [
        "one/commit-0000000001-TOKEN.json",
        "one/data-TOKEN/engine/state.bin",
        "one/data-TOKEN/manifest.json",
        "one/data-TOKEN/model.safetensors",
        "one/data-TOKEN/run.json",
    ]
    source = store.open(f"{run}/one")
    assert isinstance(source, StateSource)
    assert value_of(source) == 1
    # The data are an ordinary checkpoint, for who fetches them with other tools.
    system, folder = fsspec.filesystem("memory"), f"{run}/one/{source.commit.folder}"
    system.get(folder, str(tmp_path / "plain"), recursive=True)
    assert CheckpointStore().open(tmp_path / "plain").json("run") == {"value": 1}


def test_a_replaced_checkpoint_leaves_nothing_behind(store, run):
    saved(store, f"{run}/one", 1)
    saved(store, f"{run}/one", 2)
    assert value_of(store.open(f"{run}/one")) == 2
    assert len({name.split("/")[1] for name in objects(run)}) == 2
    assert store.open(f"{run}/one").manifest.number == 2


def test_rotation_keeps_the_newest_good_ones(store, run):
    for value in range(1, 6):
        saved(store, f"{run}/c{value}", value)
    system = fsspec.filesystem("memory")
    system.rm(next(name for name in system.find(f"{run}/c5") if name.endswith(".safetensors")))
    assert store.rotate(run, 2) == [f"{run}/c1", f"{run}/c2"]
    assert store.listed(run) == [f"{run}/c{value}" for value in (3, 4, 5)]
    assert store.latest(run) == f"{run}/c4"
    with pytest.raises(ValueError, match="at least one"):
        store.rotate(run, 0)


def test_looking_tells_what_the_commands_show(store, run):
    saved(store, f"{run}/one", 7)
    (each,) = store.look(run + "/")
    assert (each.path, each.number, each.commit.step, each.commit.world_size) == (f"{run}/one", 1, 7, 1)
    assert each.commit.size == each.manifest().size > 300
    system = fsspec.filesystem("memory")
    name = next(name for name in system.find(run) if "/commit-" in name)
    system.pipe_file(name, system.cat_file(name)[:-3])
    (each,) = store.look(run)
    assert each.number is None
    with pytest.raises(CheckpointError, match="does not look like"):
        each.manifest()
    assert store.listed(run) == []
    assert store.latest(run) is None


@pytest.mark.parametrize("how", ["flipped", "shorter", "longer", "gone"])
def test_damage_is_found_and_named(store, run, how):
    saved(store, f"{run}/old", 1)
    saved(store, f"{run}/new", 2)
    system = fsspec.filesystem("memory")
    for name in system.find(f"{run}/new"):
        what, good = name.rpartition("/")[2], system.cat_file(name)
        data = bytearray(good)
        data[len(data) // 2] ^= 4
        if how == "gone":
            system.rm(name)
        else:
            bad = {"flipped": data, "shorter": data[:-1], "longer": data + b"x"}[how]
            system.pipe_file(name, bytes(bad))
        with pytest.raises(CheckpointError) as caught:
            store.open(f"{run}/new")
        assert what in str(caught.value) or (what[:7], how) == ("commit-", "gone")
        assert value_of(store.open_latest(run)) == 1
        assert value_of(store.open_latest_together(run)) == 1
        if how == "flipped" and what in {"run.json", "state.bin"}:
            # What is fetched when it is asked for is verified then.
            source = store.open(f"{run}/new", verify="sizes")
            with pytest.raises(CheckpointError, match="is damaged: its xxh3"):
                source.json("run") if what == "run.json" else source.directory("engine")
        system.pipe_file(name, good)
    assert value_of(store.open_latest(run)) == 2


def test_lazily_only_what_is_asked_for_is_fetched(run, tmp_path):
    read = []

    class Counting(Objects):
        def read(self, uri, begin, end):
            read.append(uri.rpartition("/")[2])
            return super().read(uri, begin, end)

    store = RemoteStore(local=tmp_path / "local", objects=Counting())
    saved(store, f"{run}/one")
    read.clear()
    source = store.open(f"{run}/one", verify="sizes")
    assert len(read) == 2
    assert read[1] == "manifest.json"
    source.json("run")
    source.json("run")
    assert read[2:] == ["run.json"]


def test_latest_and_open_fetch_once(run, tmp_path):
    read = []

    class Counting(Objects):
        def read(self, uri, begin, end):
            read.append(uri.rpartition("/")[2])
            return super().read(uri, begin, end)

    store = RemoteStore(local=tmp_path / "local", objects=Counting())
    saved(store, f"{run}/one")
    store.open(store.latest(run))
    assert read.count("model.safetensors") == 1


def test_folders_of_this_machine_go_when_they_are_not_needed(store, run, tmp_path):
    saved(store, f"{run}/one", 3)
    assert rooms(tmp_path) == []
    tensors = store.open(f"{run}/one").tensors("model")
    # The source is gone, what reads its file is not.
    assert len(rooms(tmp_path)) == 1
    assert tensors["w"].sum() == 150
    weight = tensors["w"]
    del tensors
    assert rooms(tmp_path) == []
    assert weight.sum() == 150
    sink = store.begin(f"{run}/two")
    assert len(rooms(tmp_path)) == 1
    store.abort(sink)
    assert rooms(tmp_path) == []
    # Of a process that was killed.
    (left,) = (root / "read-dead" for root in tmp_path.glob("local/*"))
    left.mkdir()
    store.open(f"{run}/one")
    assert not left.exists()


def test_a_large_file_comes_in_parts(store, run, tmp_path, monkeypatch):
    from accel_state.checkpoint import hashing
    from accel_state.checkpoint.remote import transfer

    # Several parts with pieces of their own, without a file of many MiB.
    monkeypatch.setattr(hashing, "PART", 4096)
    monkeypatch.setattr(transfer, "PART", 4096)
    monkeypatch.setattr(transfer, "_PIECE", 1000)
    value = torch.randn(6001)
    with store.save(f"{run}/one") as sink:
        sink.tensors("model", {"w": value})
    assert store.open(f"{run}/one").tensors("model")["w"].equal(value)


class Failing(Objects):
    """Fail each request ``times`` times with ``error``, those that match ``when``."""

    def __init__(self, error, times, when=".", patience=0.2):
        super().__init__(patience=patience)
        self.error, self.times, self.when = error, times, when
        self.count = {}

    def _do(self, ask, doing, uri):
        def failing(system, path):
            key = f"{doing} {uri}"
            self.count[key] = self.count.get(key, 0) + 1
            if re.search(self.when, key) and self.count[key] <= self.times:
                raise type(self.error)(*self.error.args)
            return ask(system, path)

        return super()._do(failing, doing, uri)


def test_errors_that_pass_are_tried_again(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("accel_state.checkpoint.remote.retry._FIRST_WAIT", 0.001)
    objects = Failing(OSError(errno.EBUSY, "slow down"), 1, patience=20)
    store = RemoteStore(local=tmp_path / "local", objects=objects)
    saved(store, f"{run}/one", 4)
    assert value_of(store.open_latest(run)) == 4
    assert "slow down; trying again" in caplog.text
    assert max(objects.count.values()) > 1


LASTING = [
    PermissionError("no right"),
    OSError(errno.ENOSPC, "full"),
    ValueError("no such option"),
    type("NoCredentialsError", (Exception,), {})("none"),
]
PASSING = [
    ConnectionResetError("reset"),
    TimeoutError("late"),
    OSError(errno.EIO, "internal error"),
    RuntimeError("whatever"),
]


@pytest.mark.parametrize(
    ("errors", "lasting"), [(LASTING, True), (PASSING, False)], ids=["lasting", "passing"]
)
def test_what_lasts_is_an_error_at_once(run, tmp_path, errors, lasting, monkeypatch):
    monkeypatch.setattr("accel_state.checkpoint.remote.retry._FIRST_WAIT", 0.001)
    for error in errors:
        objects = Failing(error, 10**9, when="upload .*bin")
        store = RemoteStore(local=tmp_path / "local", objects=objects)
        with pytest.raises(CheckpointError) as caught:
            saved(store, f"{run}/one")
        tries = next(count for key, count in objects.count.items() if key.endswith("state.bin"))
        assert (tries == 1) == lasting
        assert tries == 1 or tries >= 3
        assert "Could not upload" in str(caught.value)
        assert str(error) in str(caught.value)
        assert caught.value.fix
        assert rooms(tmp_path) == []
        objects.when = "nothing"
        assert store.listed(run) == []
        assert fsspec.filesystem("memory").find(run) == []


class Status(Exception):
    def __init__(self, status):
        self.status = status


def test_answers_of_http():
    statuses = {400: False, 403: False, 408: True, 429: True, 500: True, 503: True}
    assert {status: trouble.passes(Status(status)) for status in statuses} == statuses
    cause = OSError(errno.EINVAL, "bad digest")
    assert not trouble.passes(cause)
    cause.__cause__ = Exception()
    cause.__cause__.response = {"Error": {"Code": "BadDigest"}}
    assert trouble.passes(cause)


def test_bytes_that_the_store_itself_calls_changed_are_damage(run, tmp_path, monkeypatch):
    monkeypatch.setattr("accel_state.checkpoint.remote.retry._FIRST_WAIT", 0.001)
    objects = Failing(
        type("FlexibleChecksumError", (Exception,), {})("differs"), 10**9, when="nothing", patience=60
    )
    store = RemoteStore(local=tmp_path / "local", objects=objects)
    saved(store, f"{run}/one", 1)
    saved(store, f"{run}/two", 2)
    objects.when = "read .*two.*bin"
    assert value_of(store.open_latest(run)) == 1


def test_a_store_that_cannot_be_reached_is_no_damaged_checkpoint(run, tmp_path):
    objects = Failing(PermissionError("no right"), 10**9, when="nothing")
    store = RemoteStore(local=tmp_path / "local", objects=objects)
    saved(store, f"{run}/one", 1)
    saved(store, f"{run}/two", 2)
    objects.when = "read .*two.*bin"
    for call in (store.open_latest, store.latest, store.open_latest_together):
        with pytest.raises(CheckpointError, match="no right"):
            call(run)


def test_a_record_that_was_stored_in_spite_of_an_error_is_no_half_checkpoint(run, tmp_path):
    class Late(Objects):
        def write(self, uri, data):
            super().write(uri, data)
            if "commit-" in uri:
                raise CheckpointError("timed out")

    store = RemoteStore(local=tmp_path / "local", objects=Late())
    with pytest.raises(CheckpointError, match="timed out"):
        saved(store, f"{run}/one")
    assert fsspec.filesystem("memory").find(run) == []


@pytest.mark.parametrize("uri", ["one", "two"])
def test_killed_between_any_two_requests(run, tmp_path, uri):
    """What a killed run leaves is what it wrote so far: the requests that follow do not happen."""

    class Killed(BaseException):
        pass

    class Stopping(Objects):
        count, at = 0, 10**9

        def _do(self, ask, doing, uri):
            self.count += 1
            if self.count > self.at:
                raise Killed
            return super()._do(ask, doing, uri)

    seen, at = [], 0
    while True:
        memory = fsspec.filesystem("memory")
        if memory.exists(run):
            memory.rm(run, recursive=True)
        saved(RemoteStore(local=tmp_path / "local"), f"{run}/one", 1)
        stopping = Stopping()
        stopping.at = at
        whole = False
        try:
            saved(RemoteStore(local=tmp_path / "local", objects=stopping), f"{run}/{uri}", 2)
            whole = True
        except Killed:
            pass
        after = RemoteStore(local=tmp_path / "local")
        seen.append(value_of(after.open_latest(run)))
        assert value_of(after.open(f"{run}/one")) in ({1, 2} if uri == "one" else {1})
        # The next save of this name leaves nothing but itself.
        saved(after, f"{run}/{uri}", 3)
        assert value_of(after.open_latest(run)) == 3
        assert len(memory.find(f"{run}/{uri}")) == 5
        at += 1
        if whole:
            break
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}
    assert len(seen) > 8


def test_what_died_a_day_ago_is_removed(store, run, monkeypatch):
    system = fsspec.filesystem("memory")
    for name, token in {"old": "20200101T000000Z-0123456789ab", "new": record.new_token()}.items():
        system.pipe_file(f"{run}/{name}/data-{token}/x.bin", b"x")
    system.pipe_file(f"{run}/other/data-set/x.bin", b"x")
    saved(store, f"{run}/one")
    found = {name.split("/")[0] for name in objects(run)}
    assert found == {"new", "one", "other"}
    with pytest.raises(CheckpointError, match="was not committed"):
        store.open(f"{run}/new")
    with pytest.raises(CheckpointError, match="does not exist"):
        store.remove(f"{run}/nowhere")


def test_a_copy_of_a_folder_is_no_checkpoint_of_this_store(store, run, tmp_path):
    with CheckpointStore().save(tmp_path / "plain") as sink:
        sink.json("run", 1)
    fsspec.filesystem("memory").put(str(tmp_path / "plain"), f"{run}/plain", recursive=True)
    with pytest.raises(CheckpointError, match="copy of a folder"):
        store.open(f"{run}/plain")
    assert store.listed(run) == []


def test_one_that_is_replaced_while_it_is_opened(run, tmp_path):
    other = RemoteStore(local=tmp_path / "other")

    class Late(Objects):
        raced = False

        def read(self, uri, begin, end):
            if "commit-" in uri and not self.raced:
                Late.raced = True
                saved(other, f"{run}/one", 2)
            return super().read(uri, begin, end)

    saved(other, f"{run}/one", 1)
    assert value_of(RemoteStore(local=tmp_path / "local", objects=Late()).open(f"{run}/one")) == 2


HOSTILE = ["../evil", "/etc/passwd", "a/../../evil", "C:/evil", "a\\..\\evil"]


def test_a_manifest_that_points_elsewhere_is_refused(store, run, tmp_path):
    from dataclasses import replace

    from accel_state.checkpoint.hashing import digest
    from accel_state.checkpoint.manifest import FileRecord

    saved(store, f"{run}/one")
    source = store.open(f"{run}/one")
    system = fsspec.filesystem("memory")
    system.pipe_file(f"{run}/evil", b"evil")
    file = "engine/state.bin"
    bad = replace(source.manifest, files={**source.manifest.files, file: FileRecord(4, digest(b"evil"))})
    for path in HOSTILE:
        shown = path.replace("\\", "\\\\")
        text = bad.encode().replace(b'"engine/state.bin"', f'"{shown}"'.encode())
        first, rest = text.split(b"\n", 1)
        own = b'"hash": "' + digest(rest).encode() + b'"'
        text = re.sub(rb'"hash": "[0-9a-f]+"', own, first) + b"\n" + rest
        system.pipe_file(f"{run}/one/{source.commit.folder}/manifest.json", text)
        commit = replace(source.commit, manifest_size=len(text), manifest_hash=digest(text))
        system.pipe_file(f"{run}/one/{commit.name}", commit.encode())
        with pytest.raises(CheckpointError, match="not a path inside the checkpoint"):
            store.open(f"{run}/one")
    assert not list(tmp_path.rglob("evil"))


def test_a_record_that_lies_is_refused(store, run):
    from dataclasses import replace

    saved(store, f"{run}/one")
    commit = store.open(f"{run}/one").commit
    system = fsspec.filesystem("memory")
    lies = [
        {"token": "../../other"},
        {"manifest_size": 10**12},
        {"manifest_size": -1},
        {"number": "1"},
        {"world_size": True},
        {"size": 1.5},
        {"step": "x"},
        {"number": 3},
    ]
    for lie in lies:
        system.pipe_file(f"{run}/one/{commit.name}", replace(commit, **lie).encode())
        with pytest.raises(CheckpointError, match="cannot be used"):
            store.open(f"{run}/one")
    system.pipe_file(f"{run}/one/{commit.name}", commit.encode() + b" " * 10**6)
    with pytest.raises(CheckpointError, match="does not look like"):
        store.open(f"{run}/one")


@given(st.binary(max_size=300), st.integers(0, 300))
def test_a_record_of_any_bytes_is_refused(data, place):
    text = record.Commit(1, "t", None, 1, 5, "20260101T000000Z-0123456789ab", 9, "ab").encode()
    for each in (data, text[:place] + data + text[place:], text[:place]):
        if each != text:
            with pytest.raises(CheckpointError):
                record.decode(each, "commit-0000000001-20260101T000000Z-0123456789ab.json", "x")


# -- several processes -----------------------------------------------------------------------------


def own_store(tmp_path, **more):
    return RemoteStore(process.start().collectives, local=tmp_path / "local", patience=0.2, **more)


def save_all(tmp_path, uri, value):
    store = own_store(tmp_path)
    rank = store.group.rank
    with store.save(uri, step=value) as sink:
        sink.tensors(f"rank_{rank}/shard", {"w": torch.full((rank + 1, 10), float(value))})
        (sink.directory("engine") / f"part_{rank}.bin").write_bytes(bytes([value]) * (rank + 1))
        if rank == 0:
            sink.json("run", {"value": value})
    return store.listed(address.parent(uri))


@pytest.mark.world(2)
def test_two_save_and_one_or_two_load(pool, tmp_path):
    run = f"file://{tmp_path}/run"
    for value in (1, 2):
        listed = pool.run(2, save_all, tmp_path, f"{run}/c{value}", value)
        assert listed == [[f"{run}/c{each}" for each in range(1, value + 1)]] * 2
    (bin_file,) = tmp_path.glob("run/c2/data-*/engine/part_1.bin")
    good = bin_file.read_bytes()
    one = RemoteStore(local=tmp_path / "local")
    source = one.open_latest(run)
    assert (source.path, source.manifest.world_size) == (f"{run}/c2", 2)
    assert source.tensors("rank_1/shard")["w"].equal(torch.full((2, 10), 2.0))
    assert sorted(each.name for each in source.directory("engine").iterdir()) == ["part_0.bin", "part_1.bin"]

    def load():
        read = []

        class Counting(Objects):
            def read(self, uri, begin, end):
                read.append(uri.rpartition("/")[2])
                return super().read(uri, begin, end)

        store = own_store(tmp_path, objects=Counting())
        source = store.open_latest_together(run)
        other = 1 - store.group.rank
        assert source.tensors(f"rank_{other}/shard")["w"].shape == (other + 1, 10)
        own = source.directory("engine") / f"part_{other}.bin"
        return source.path, own.read_bytes()[0], sorted(each for each in read if each[0] in "prs")

    del source
    first, second = pool.run(2, load)
    assert first[:2] == second[:2] == (f"{run}/c2", 2)
    # Every file comes to the machine once.
    assert (
        sorted(first[2] + second[2]) == ["part_0.bin", "part_1.bin", "run.json"] + ["shard.safetensors"] * 2
    )

    bin_file.write_bytes(b"\7" + good[1:])
    first, second = pool.run(2, load)
    assert first[:2] == second[:2] == (f"{run}/c1", 1)
    failures = pool.failures(2, lambda: own_store(tmp_path).open_together(f"{run}/c2"))
    assert all("engine/part_1.bin" in str(each) for each in failures), failures


@pytest.mark.world(2)
@pytest.mark.parametrize("when", ["upload", "same", "block", "memory"])
def test_an_error_on_one_rank_fails_all_and_leaves_nothing(pool, tmp_path, when):
    run = f"file://{tmp_path}/run"
    pool.run(2, save_all, tmp_path, f"{run}/one", 1)
    before = sorted(tmp_path.glob("run/**/*"))

    def fail():
        class Refusing(Objects):
            def upload(self, file, uri):
                if when == "upload" and "part_1" in uri:
                    raise CheckpointError("no right to do that")
                super().upload(file, uri)

        store = own_store(tmp_path, objects=Refusing(patience=0.2))
        target = f"{run}/one" if when != "memory" else "memory://bucket/run/one"
        with store.save(target) as sink:
            name = "part.bin" if when == "same" else f"part_{store.group.rank}.bin"
            (sink.directory("engine") / name).write_bytes(b"x")
            if when == "block" and store.group.rank:
                raise ZeroDivisionError("the cause")

    failures = pool.failures(2, fail)
    cause = {"same": "both wrote the file", "block": "the cause", "upload": "no right"}
    cause["memory"] = "engine/part_1.bin: is missing"
    assert all(cause[when] in str(each) for each in failures), failures
    assert sorted(tmp_path.glob("run/**/*")) == before
    assert rooms(tmp_path) == []


@pytest.mark.world(2)
def test_a_save_that_one_rank_cannot_begin_leaves_nothing(pool, tmp_path):
    (tmp_path / "file").write_text("")

    def begin():
        rank = process.start().collectives.rank
        local = tmp_path / ("file" if rank else "local")
        RemoteStore(process.start().collectives, local=local).begin(f"file://{tmp_path}/run/one")

    failures = pool.failures(2, begin)
    assert all("File exists" in str(each) for each in failures), failures
    assert "Rank 1 could not begin to save" in str(failures[0])
    assert rooms(tmp_path) == []
    assert not (tmp_path / "run").exists()


@pytest.mark.world(2)
def test_a_rank_that_takes_long_keeps_nobody_waiting_for_one_message(pool, tmp_path):
    def save():
        from accel_state.checkpoint.remote import waiting

        waiting.BEAT = 0.05
        gathers = []

        class Slow(Objects):
            def upload(self, file, uri):
                time.sleep(0.5 if store.group.rank else 0)
                super().upload(file, uri)

        class Counting:
            def __init__(self, group):
                self._group = group

            def __getattr__(self, name):
                return getattr(self._group, name)

            def all_gather_object(self, value):
                gathers.append(value)
                return self._group.all_gather_object(value)

        store = RemoteStore(
            Counting(process.start().collectives), local=tmp_path / "local", objects=Slow(patience=1)
        )
        with store.save(f"file://{tmp_path}/run/one") as sink:
            sink.json(f"rank_{store.group.rank}", 1)
        return gathers.count(True), gathers.count(False)

    (first, none), (one, some) = pool.run(2, save)
    assert (none, one) == (0, 1)
    assert first == some + one
    assert some >= 3


# -- which store -----------------------------------------------------------------------------------


def test_paths_and_schemes_lead_to_their_stores(tmp_path, monkeypatch):
    assert isinstance(store_for(tmp_path / "x"), CheckpointStore)
    assert isinstance(store_for("relative/x"), CheckpointStore)
    for uri in ("memory://x/y", "file:///x", "FILE:///x", "local:///x"):
        assert isinstance(store_for(uri), RemoteStore)
    group = LonelyCollectives()
    assert store_for("memory://x/y", group).group is group
    assert store_for("x", group).group is group


def test_what_a_save_would_replace(store, run, tmp_path, monkeypatch):
    assert not resolve.taken(tmp_path / "x")
    (tmp_path / "x").mkdir()
    assert resolve.taken(tmp_path / "x", LonelyCollectives())
    assert not resolve.taken(f"{run}/one")
    saved(store, f"{run}/one")
    assert resolve.taken(f"{run}/one/")
    # A store of a third party has what the protocol asks for.
    monkeypatch.delattr(RemoteStore, "exists")
    assert resolve.taken(f"{run}/one/")
    assert not resolve.taken(f"{run}/two")


def test_a_third_party_offers_a_scheme(monkeypatch):
    class Own:
        def __init__(self, group):
            self.group = group

    monkeypatch.setattr(resolve.plugins, "names", lambda group: ["fsspec", "local", "own"])
    monkeypatch.setattr(resolve.plugins, "find", lambda group, name: {"own": Own}[name])
    assert isinstance(store_for("own://x/y"), Own)


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("memori://bucket/x", UnknownNameError, "Did you mean 'memory'"),
        ("simplecache::s3://bucket/x", CheckpointError, "no URI of one scheme"),
        ("s3:/bucket/x", CheckpointError, "a function for paths"),
        ("file:/x", CheckpointError, "a function for paths"),
        ("://x", CheckpointError, "no URI of one scheme"),
    ],
)
def test_what_is_no_place_is_refused(path, kind, said):
    with pytest.raises(kind, match=re.escape(said)):
        store_for(path)


def test_a_missing_driver_is_named(monkeypatch):
    from fsspec.registry import known_implementations

    monkeypatch.setitem(known_implementations, "nowhere", {"class": "nowherefs.System", "err": "x"})
    monkeypatch.setitem(
        known_implementations, "inner", {"class": "fsspec.implementations.no.System", "err": "x"}
    )
    with pytest.raises(NotInstalledError, match="pip install nowherefs"):
        store_for("nowhere://bucket/x")
    with pytest.raises(NotInstalledError, match=re.escape("pip install fsspec[inner]")):
        store_for("inner://bucket/x")


def test_no_place_for_a_checkpoint(store):
    for uri in ("memory://", "memory:///", "memory://a/../b", "file://", "file:///", "memory://a/./b"):
        with pytest.raises(CheckpointError):
            store.begin(uri)


def test_uris_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert child("s3://bucket/run/checkpoints", "checkpoint_0") == "s3://bucket/run/checkpoints/checkpoint_0"
    assert child("s3://bucket//run/", "c") == "s3://bucket/run/c"
    assert child("S3://Bucket", "c") == "s3://Bucket/c"
    assert child("file:///x", "c") == "file:///x/c"
    assert child("memory://", "c") == "memory://c"
    assert child(tmp_path, "c") == str(tmp_path / "c")
    assert address.parent("s3://bucket/run/c") == "s3://bucket/run"
    assert address.parent("file:///x") == "file:///"
    assert address.name_of("s3://bucket/run/c/") == "c"
    assert address.shown("sftp://me:secret@host/x") == "sftp://me:***@host/x"
    assert [is_uri(each) for each in ("s3://x", "/x", Path("x"))] == [True, False, False]
    RemoteStore().look("memory://no-such-run/at-all")
    assert not list(tmp_path.iterdir())


def test_a_bucket_of_a_misspelt_name_is_not_made(store, tmp_path):
    class Bucketless:
        """As a driver of an object store behaves, where only the bucket `there` exists."""

        made: typing.ClassVar = []

        def exists(self, path):
            return path == "there"

        def makedirs(self, path, exist_ok):
            self.made.append(path)

    from accel_state.checkpoint.remote.objects import _made

    tries = []

    def put():
        tries.append(1)
        if len(tries) == 1:
            raise FileNotFoundError

    with pytest.raises(FileNotFoundError, match="misspelt does not exist"):
        _made(Bucketless(), "misspelt/run/x", put)
    assert Bucketless.made == []
    tries.clear()
    _made(Bucketless(), "there/run/x", put)
    assert Bucketless.made == ["there/run"]


def test_interrupted_writing_leaves_nothing_here(store, run, tmp_path):
    with pytest.raises(KeyboardInterrupt), store.save(f"{run}/one") as sink:  # noqa: PT012
        sink.json("run", 1)
        raise KeyboardInterrupt
    assert rooms(tmp_path) == []
    with pytest.raises(CheckpointError, match="is no sink"):
        store.commit(object())
    with pytest.raises(CheckpointError, match="given up before"):
        sink.json("more", 1)
