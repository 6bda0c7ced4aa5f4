"""One process: what is there before, during and after a commit, whatever fails on the way."""

# ruff: noqa: PT012 - what fails is a save, which is a block

import errno
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from accel_core.errors import CheckpointError, ConfigError
from accel_state.checkpoint import CheckpointStore, Files
from accel_state.checkpoint.places import STALE_AFTER


def saved(store, path, value=1, step=None):
    with store.save(path, step=step) as sink:
        sink.tensors("unit/model", {"a": torch.full((1000,), float(value)), "b": torch.full((3,), value)})
        sink.json("unit/meta", {"value": value})
        (sink.directory("engine") / "state.bin").write_bytes(bytes([value]) * 5000)
    return path


def value_of(source):
    """Return the value that everything in a checkpoint agrees on."""
    found = {source.json("unit/meta")["value"]}
    found |= {int(each) for tensor in source.tensors("unit/model").values() for each in tensor.unique()}
    found |= set((source.directory("engine") / "state.bin").read_bytes())
    assert len(found) == 1, f"mixed: {found}"
    return found.pop()


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.fixture
def store():
    return CheckpointStore()


# -- what is there -------------------------------------------------------------------------------


def test_the_manifest_says_what_is_there(store, tmp_path):
    saved(store, tmp_path / "one", step=12)
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"], manifest["algorithm"]) == (
        "accel-checkpoint",
        1,
        "xxh3_128-64MiB",
    )
    assert (manifest["step"], manifest["world_size"], manifest["number"]) == (12, 1, 1)
    assert manifest["entries"]["unit/model"] == {
        "kind": "tensors",
        "path": "unit/model.safetensors",
        "tensors": {"a": {"dtype": "float32", "shape": [1000]}, "b": {"dtype": "int64", "shape": [3]}},
    }
    files = {path.relative_to(tmp_path / "one").as_posix() for path in (tmp_path / "one").rglob("*.*")}
    assert files == {*manifest["files"], "manifest.json"}
    for name, record in manifest["files"].items():
        assert (tmp_path / "one" / name).stat().st_size == record["size"]


def test_paths_may_be_relative_deep_and_links(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(store, "new/folders/one")
    assert value_of(store.open("new/folders/one")) == 1
    Path("link").symlink_to("new/folders")
    saved(store, "link/two", 2)
    assert value_of(store.open(tmp_path / "new" / "folders" / "two")) == 2
    Path("last").symlink_to("link/two")
    assert value_of(store.open("last")) == 2
    saved(store, "last", 3)
    assert value_of(store.open("link/two")) == 3


def test_links_to_checkpoints_are_not_listed_twice(store, tmp_path):
    saved(store, tmp_path / "one")
    (tmp_path / "last").symlink_to(tmp_path / "one")
    assert store.listed(tmp_path) == [str(tmp_path / "one")]


def test_files_written_beside_the_names_are_hashed_too(store, tmp_path):
    with store.save(tmp_path / "one") as sink:
        (sink.folder / "hook").mkdir()
        (sink.folder / "hook" / "config.json").write_text("{}")
    source = store.open(tmp_path / "one")
    assert source.names() == []
    assert list(source.manifest.files) == ["hook/config.json"]
    damage(tmp_path / "one" / "hook" / "config.json")
    with pytest.raises(CheckpointError, match=r"hook/config\.json: its xxh3_128-64MiB is"):
        store.open(tmp_path / "one")


# -- replacing -----------------------------------------------------------------------------------


def test_saving_to_the_same_path_replaces(store, tmp_path):
    saved(store, tmp_path / "one", 1)
    saved(store, tmp_path / "one", 2)
    assert value_of(store.open(tmp_path / "one")) == 2
    assert names(tmp_path) == ["one"]
    assert store.open(tmp_path / "one").manifest.number == 2


def test_an_empty_folder_may_become_a_checkpoint_others_not(store, tmp_path):
    (tmp_path / "empty").mkdir()
    saved(store, tmp_path / "empty")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        saved(store, tmp_path / "work")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="a file of this name"):
        saved(store, tmp_path / "file")
    with pytest.raises(CheckpointError, match="no place"):
        store.begin("/")
    assert names(tmp_path) == ["empty", "file", "work"]


def test_files_added_to_a_checkpoint_are_not_removed_by_replacing_it(store, tmp_path):
    saved(store, tmp_path / "one")
    (tmp_path / "one" / "notes.txt").write_text("mine")
    assert value_of(store.open(tmp_path / "one")) == 1
    with pytest.raises(CheckpointError, match=r"no part of it: notes\.txt"):
        saved(store, tmp_path / "one", 2)
    assert (tmp_path / "one" / "notes.txt").read_text() == "mine"


class Failing(Files):
    """Fail at the operation number ``at``, as a full disk, a failing one or missing rights do."""

    def __init__(self, at, code=errno.ENOSPC):
        self.at, self.code, self.count, self.log = at, code, 0, []

    def fail(self, name):
        self.count += 1
        self.log.append(name)
        if self.count == self.at:
            raise OSError(self.code, os.strerror(self.code))

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name not in vars(Files):
            return found

        def counted(*arguments):
            self.fail(name)
            return found(*arguments)

        return counted


def operations(folder, *, again):
    """Return the operations of a save that works, and the number of the one that commits."""
    files = Failing(0)
    folder.mkdir()
    if again:
        saved(CheckpointStore(), folder / "one", 1)
    saved(CheckpointStore(files=files), folder / "one", 2)
    assert {"make_folder", "create", "write", "sync", "sync_folder", "rename"} <= set(files.log)
    commit = [number for number, name in enumerate(files.log, 1) if name == "rename"][again]
    return files.log, commit


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("again", [False, True], ids=["new", "replaced"])
def test_an_error_at_any_operation_leaves_the_old_checkpoint_and_no_litter(tmp_path, again, code):
    log, commit = operations(tmp_path / "count", again=again)
    for at in range(1, len(log) + 1):
        folder = tmp_path / f"{at}"
        saved(CheckpointStore(), folder / "before", 0)
        if again:
            saved(CheckpointStore(), folder / "one", 1)
        files = Failing(at, code)
        error = ""
        try:
            saved(CheckpointStore(files=files), folder / "one", 2)
        except CheckpointError as caught:
            error = str(caught)
        # After the commit come the flush of its name, and the removal of what was replaced.
        done = at > commit
        assert bool(error) == (at <= commit + 1), (at, log)
        assert not error or (os.strerror(code) in error and str(folder) in error)
        assert value_of(CheckpointStore().open_latest(folder)) == (2 if done else 1 if again else 0), (
            at,
            log,
        )
        assert done or names(folder) == (["before", "one"] if again else ["before"]), (at, log)
        saved(CheckpointStore(), folder / "next", 3)
        assert names(folder) == (["before", "next", "one"] if again or done else ["before", "next"]), (
            at,
            log,
        )


def test_an_exception_in_the_block_removes_what_was_written(store, tmp_path):
    saved(store, tmp_path / "one", 1)
    with pytest.raises(ZeroDivisionError), store.save(tmp_path / "one") as sink:
        sink.json("half", 1)
        raise ZeroDivisionError
    assert names(tmp_path) == ["one"]
    assert value_of(store.open(tmp_path / "one")) == 1


def test_an_interrupt_lets_go_and_the_next_save_cleans_up(store, tmp_path):
    with pytest.raises(KeyboardInterrupt), store.save(tmp_path / "one") as sink:
        sink.json("half", 1)
        raise KeyboardInterrupt
    assert store.listed(tmp_path) == []
    saved(store, tmp_path / "two")
    assert names(tmp_path) == ["two"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_named(store, tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(CheckpointError, match="Permission denied"):
        saved(store, tmp_path / "one")


# -- what dead runs left -------------------------------------------------------------------------

LEAVER = """
import os, sys, torch
from accel_state.checkpoint import CheckpointStore
sink = CheckpointStore().begin(sys.argv[1])
sink.json("half", [1])
print("ready", flush=True)
sys.stdin.read()
"""


def test_what_a_dead_run_left_is_removed_what_a_living_one_writes_is_not(store, tmp_path):
    own = store.begin(tmp_path / "own")
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVER, str(tmp_path / "other")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        saved(store, tmp_path / "one")
        writing = [name for name in names(tmp_path) if "writing" in name]
        assert len(writing) == 2
        process.kill()
        process.wait()
    saved(store, tmp_path / "two")
    assert [name for name in names(tmp_path) if "writing" in name] == [own.folder.name]
    own.json("x", 1)
    store.commit(own)
    assert names(tmp_path) == ["one", "own", "two"]


def test_a_folder_of_another_machine_goes_when_nothing_in_it_changes_for_a_day(store, tmp_path):
    left = tmp_path / ".one.accel-writing-00000000-0123456789ab"
    (left / "unit").mkdir(parents=True)
    (left / "unit" / "model.safetensors").write_bytes(b"half")
    long_ago = time.time() - STALE_AFTER - 60
    for path in (left, left / "unit"):
        os.utime(path, (long_ago, long_ago))
    saved(store, tmp_path / "one")
    assert left.exists()
    os.utime(left / "unit" / "model.safetensors", (long_ago, long_ago))
    saved(store, tmp_path / "two")
    assert names(tmp_path) == ["one", "two"]


def test_names_that_only_look_similar_are_left_alone(store, tmp_path):
    mine = [
        ".one.accel-writing",
        ".one.accel-writing-0-0",
        ".one.tmp",
        ".accel-removed-00000000-0123456789ab",
    ]
    for name in mine:
        (tmp_path / name).mkdir()
    saved(store, tmp_path / "one")
    assert names(tmp_path) == sorted([*mine, "one"])


def test_a_checkpoint_that_was_being_replaced_is_found_and_put_back(store, tmp_path):
    saved(store, tmp_path / "before", 1)
    saved(store, tmp_path / "one", 2)
    aside = tmp_path / ".one.accel-replaced-00000000-0123456789ab"
    (tmp_path / "one").rename(aside)
    assert store.latest(tmp_path) == str(aside)
    assert value_of(store.open(tmp_path / "one")) == 2
    saved(store, tmp_path / "three", 3)
    assert names(tmp_path) == ["before", "one", "three"]
    assert [Path(path).name for path in store.listed(tmp_path)] == ["before", "one", "three"]


# -- the newest that verifies --------------------------------------------------------------------


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(store, tmp_path, caplog):
    for value in (1, 2, 3, 4):
        saved(store, tmp_path / f"step-{value}", value)
    damage(tmp_path / "step-4" / "unit" / "model.safetensors")
    (tmp_path / "step-3" / "engine" / "state.bin").write_bytes(b"short")
    manifest = tmp_path / "step-2" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:40])
    with caplog.at_level(logging.WARNING):
        assert value_of(store.open_latest(tmp_path)) == 1
    text = caplog.text
    assert "step-4 is damaged" in text
    assert "unit/model.safetensors: its xxh3_128-64MiB is" in text
    assert "engine/state.bin: has 5 bytes instead of 5,000" in text
    assert "step-2" in text
    assert "manifest.json" in text
    assert [Path(path).name for path in store.listed(tmp_path)] == ["step-1", "step-3", "step-4"]
    assert [each.number for each in store.look(tmp_path)] == [None, 1, 3, 4]


def test_a_damaged_manifest_is_named(store, tmp_path, caplog):
    for value in (1, 2):
        saved(store, tmp_path / f"step-{value}", value)
    damage(tmp_path / "step-2" / "manifest.json")
    assert value_of(store.open_latest(tmp_path)) == 1
    assert "step-2 is damaged" in caplog.text
    assert "The manifest cannot be used" in caplog.text
    assert "step-2/manifest.json" in caplog.text


def test_the_head_of_a_manifest_is_enough_for_the_order(store, tmp_path):
    """The head that listing reads is that which saving writes."""
    for step in (None, 0, -3, 10**15):
        saved(store, tmp_path / f"{step}", step=step)
    assert [each.number for each in store.look(tmp_path)] == [1, 2, 3, 4]
    assert [each.manifest().time == each.time for each in store.look(tmp_path)] == [True] * 4


def test_sizes_alone_are_looked_at_when_asked(store, tmp_path):
    saved(store, tmp_path / "one")
    damage(tmp_path / "one" / "engine" / "state.bin")
    assert store.open(tmp_path / "one", verify="sizes").json("unit/meta") == {"value": 1}
    (tmp_path / "one" / "engine" / "state.bin").unlink()
    with pytest.raises(CheckpointError, match="state.bin: is missing"):
        store.open(tmp_path / "one", verify="sizes")


def test_the_order_is_that_of_commits_not_of_clocks(store, tmp_path, monkeypatch):
    saved(store, tmp_path / "b")
    saved(store, tmp_path / "a")
    os.utime(tmp_path / "b")
    assert [Path(path).name for path in store.listed(tmp_path)] == ["b", "a"]


def test_nothing_there(store, tmp_path):
    assert store.latest(tmp_path / "nowhere") is None
    assert store.listed(tmp_path / "nowhere") == []
    with pytest.raises(CheckpointError, match="does not exist"):
        store.remove(tmp_path / "nowhere")
    (tmp_path / "plain").mkdir()
    with pytest.raises(CheckpointError, match="not a committed checkpoint"):
        store.remove(tmp_path / "plain")
    assert (tmp_path / "plain").exists()


# -- rotation ------------------------------------------------------------------------------------


def test_rotation_keeps_the_newest(store, tmp_path):
    for value in range(1, 6):
        saved(store, tmp_path / f"s{value}", value)
        store.rotate(tmp_path, 2)
    assert names(tmp_path) == ["s4", "s5"]
    assert store.rotate(tmp_path, 2) == []


def test_rotation_never_removes_the_newest_good_one(store, tmp_path):
    for value in range(1, 6):
        saved(store, tmp_path / f"s{value}", value)
    for value in (4, 5):
        (tmp_path / f"s{value}" / "unit" / "meta.json").unlink()
    assert [Path(path).name for path in store.rotate(tmp_path, 1)] == ["s1", "s2"]
    assert names(tmp_path) == ["s3", "s4", "s5"]
    assert value_of(store.open_latest(tmp_path)) == 3
    for value in (3,):
        (tmp_path / f"s{value}" / "unit" / "meta.json").unlink()
    assert store.rotate(tmp_path, 1) == []


def test_rotation_keeps_at_least_one(store, tmp_path):
    saved(store, tmp_path / "one")
    with pytest.raises(ConfigError, match="keep=0"):
        store.rotate(tmp_path, 0)


# -- misuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../b",
        "a//b",
        "a/",
        ".hidden",
        "a\0b",
        "c:x",
        "a\\b",
        "x" * 300,
        "end.",
        3,
    ],
    ids=repr,
)
def test_names_that_are_no_files_are_refused(store, tmp_path, name):
    with pytest.raises(CheckpointError, match="cannot be a name"), store.save(tmp_path / "one") as sink:
        sink.json(name, 1)
    assert names(tmp_path) == []


def test_names_are_unique(store, tmp_path):
    with pytest.raises(CheckpointError, match="'x' was written before"), store.save(tmp_path / "one") as sink:
        sink.json("x", 1)
        sink.tensors("x", {})
    with pytest.raises(CheckpointError, match=r"manifest\.json"), store.save(tmp_path / "one") as sink:
        sink.json("Manifest", 1)
    with pytest.raises(CheckpointError, match="case does not count"), store.save(tmp_path / "one") as sink:
        sink.json("x", 1)
        sink.json("X", 1)
    assert names(tmp_path) == []


def test_a_folder_and_a_file_of_one_name_are_refused(store, tmp_path):
    with pytest.raises(CheckpointError), store.save(tmp_path / "one") as sink:
        sink.directory("x.json")
        sink.json("x", 1)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1, (2, 3)]}, r"value\['a'\]\[1\] is a tuple"),
        ({1: 2}, "the key 1, a int"),
        ({"a": {"b": torch.ones(1)}}, r"value\['a'\]\['b'\] is a Tensor"),
        ({"a": {1, 2}}, "is a set"),
        (b"bytes", "is a bytes"),
    ],
)
def test_what_json_would_change_is_refused_with_its_place(store, tmp_path, value, place):
    with pytest.raises(CheckpointError, match=place), store.save(tmp_path / "one") as sink:
        sink.json("x", value)


def test_values_that_contain_themselves_are_refused(store, tmp_path):
    value = []
    value.append(value)
    with pytest.raises(CheckpointError, match="contains itself"), store.save(tmp_path / "one") as sink:
        sink.json("x", value)


def test_a_sink_ends_once(store, tmp_path):
    with store.save(tmp_path / "one") as sink:
        pass
    for action in (
        lambda: sink.json("x", 1),
        lambda: sink.tensors("x", {}),
        lambda: sink.directory("x"),
        lambda: store.commit(sink),
    ):
        with pytest.raises(CheckpointError, match="committed or given up before"):
            action()
    assert store.listed(tmp_path) == [str(tmp_path / "one")]


def test_links_are_not_committed(store, tmp_path):
    (tmp_path / "secret").write_text("x")
    with pytest.raises(CheckpointError, match="no links"), store.save(tmp_path / "one") as sink:
        (sink.directory("engine") / "link").symlink_to(tmp_path / "secret")
    assert names(tmp_path) == ["secret"]
    assert (tmp_path / "secret").read_text() == "x"


def test_asking_for_another_kind_says_so(store, tmp_path):
    saved(store, tmp_path / "one")
    source = store.open(tmp_path / "one")
    with pytest.raises(CheckpointError, match="'unit/meta' is stored as json; tensors was asked for"):
        source.tensors("unit/meta")
    with pytest.raises(KeyError):
        source.tensors("unit/model")["nothing"]
