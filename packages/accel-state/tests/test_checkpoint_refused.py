"""Checkpoints that lie: every hash in them is right, and still nothing outside is read and nothing is run."""

import json
import pickle
import re
import struct

import pytest
import torch
import xxhash

from accel_core.errors import CheckpointError
from accel_state.checkpoint import CheckpointStore


@pytest.fixture
def checkpoint(tmp_path):
    with CheckpointStore().save(tmp_path / "one", step=3) as sink:
        base = torch.arange(12.0)
        sink.tensors(
            "unit/model", {"a": base, "tied": base, "part": base[2:6], "b": torch.zeros(3, dtype=torch.int8)}
        )
        sink.json("meta", {"value": 1})
        (sink.directory("engine") / "state.txt").write_text("fine")
    return tmp_path / "one"


def opened(path):
    return CheckpointStore().open(path)


def sign(path, value):
    """Write a manifest whose own hash is right."""
    head = {key: value.pop(key) for key in ("format", "version", "algorithm", "hash")}
    rest = (json.dumps(value)[1:] + "\n").encode()
    raw_sign(path, rest, **head)
    value |= head


def raw_sign(path, rest, **head):
    known = {"format": "accel-checkpoint", "version": 1, "algorithm": "xxh3_128-64MiB"} | head
    known["hash"] = xxhash.xxh3_128(rest).hexdigest()
    (path / "manifest.json").write_bytes(json.dumps(known)[:-1].encode() + b",\n" + rest)


def forge(path, change):
    """Change the manifest, and make its hash right again."""
    value = json.loads((path / "manifest.json").read_text())
    change(value)
    sign(path, value)


def rewrite(path, name, data):
    """Change a file, and make size and hash in the manifest right again."""
    (path / name).write_bytes(data)
    record = {"size": len(data), "hash": xxhash.xxh3_128(data).hexdigest()}
    forge(path, lambda value: value["files"].update({name: record}))


def test_forging_as_such_works(checkpoint):
    forge(checkpoint, lambda value: value.update(step=4))
    rewrite(checkpoint, "meta.json", b'{"value": 2}')
    assert opened(checkpoint).manifest.step == 4
    assert opened(checkpoint).json("meta") == {"value": 2}


# -- the manifest --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outside",
    [
        "../secret",
        "/etc/passwd",
        "unit/../../secret",
        "./meta.json",
        "unit//model.safetensors",
        "..",
        "C:\\x",
        "a\\b",
        "",
    ],
)
@pytest.mark.parametrize("place", ["files", "entries"])
def test_paths_outside_are_refused_before_they_are_looked_at(checkpoint, place, outside):
    (checkpoint.parent / "secret").write_text("x")

    def change(value):
        record = value["files"]["meta.json"]
        if place == "files":
            value["files"][outside] = record
        else:
            value["entries"]["meta"]["path"] = outside

    forge(checkpoint, change)
    with pytest.raises(CheckpointError, match=re.escape(repr(outside))) as caught:
        opened(checkpoint)
    assert "not a path inside" in str(caught.value)
    assert "manifest.json" in caught.value.where


@pytest.mark.parametrize("how", ["file", "folder", "inside a component's folder", "manifest"])
def test_links_are_not_followed(checkpoint, how, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    if how == "file":
        (checkpoint / "meta.json").rename(outside / "meta.json")
        (checkpoint / "meta.json").symlink_to(outside / "meta.json")
    elif how == "folder":
        (checkpoint / "unit").rename(outside / "unit")
        (checkpoint / "unit").symlink_to(outside / "unit")
    elif how == "manifest":
        (checkpoint / "manifest.json").rename(outside / "manifest.json")
        (checkpoint / "manifest.json").symlink_to(outside / "manifest.json")
    else:
        (outside / "more").write_text("x")
        (checkpoint / "engine" / "more").symlink_to(outside / "more")
    with pytest.raises(CheckpointError, match="link|Too many levels"):
        opened(checkpoint)


def test_a_component_is_not_handed_files_that_were_not_saved(checkpoint):
    (checkpoint / "engine" / "evil.pt").write_bytes(pickle.dumps(print))
    with pytest.raises(CheckpointError, match=r"engine/evil\.pt: was not part"):
        opened(checkpoint)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


def test_pickles_are_never_read(checkpoint, tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    with pytest.raises(FileNotFoundError):
        (tmp_path / "exploded").stat()
    for name in ("optimizer.bin", "random_states_0.pkl", "pytorch_model.bin", "unit/model.pt"):
        (checkpoint / name).write_bytes(bomb)
    source = opened(checkpoint)
    assert sorted(source.names()) == ["engine", "meta", "unit/model"]
    assert CheckpointStore().latest(checkpoint.parent) == str(checkpoint)
    for name in ("meta.json", "unit/model.safetensors"):
        rewrite(checkpoint, name, bomb)
        with pytest.raises(CheckpointError):
            opened(checkpoint).json("meta")
    rewrite(checkpoint, "meta.json", bomb)
    raw_sign(checkpoint, bomb)
    with pytest.raises(CheckpointError, match="JSON"):
        opened(checkpoint)
    (checkpoint / "manifest.json").write_bytes(bomb)
    with pytest.raises(CheckpointError, match="first line"):
        opened(checkpoint)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ({"version": 2}, "Unknown format 'accel-checkpoint', version 2"),
        ({"format": "other"}, "Unknown format 'other'"),
        ({"algorithm": "crc32"}, "Unknown hash 'crc32'"),
    ],
)
def test_unknown_versions_are_named(checkpoint, head, reason):
    forge(checkpoint, lambda value: value.update(head))
    with pytest.raises(CheckpointError, match=reason) as caught:
        opened(checkpoint)
    assert caught.value.where.endswith("manifest.json")


def test_a_million_entries_are_refused(checkpoint):
    """Refused by their number; and by their bytes before they are read."""
    rest = b'"entries": {}, "files": {' + b",".join(
        b'"%d": {"size": 0, "hash": ""}' % n for n in range(1_000_000)
    )
    rest += b'}, "number": 1, "time": "", "world_size": 1, "writer": "", "step": null}\n'
    raw_sign(checkpoint, rest)
    with pytest.raises(CheckpointError, match="There are 1,000,000 files"):
        opened(checkpoint)
    with (checkpoint / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="1,099,511,627,776 bytes; at most"):
        opened(checkpoint)


def test_a_save_that_could_not_be_read_back_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("accel_state.checkpoint.manifest.MOST_ENTRIES", 50)
    with (
        pytest.raises(CheckpointError, match="the bound of one checkpoint is 50"),
        CheckpointStore().save(tmp_path / "one") as sink,
    ):
        sink.tensors("x", {f"{n}": torch.ones(1) for n in range(60)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "rest",
    [
        b'"entries": {}, "files": {"a": {"size": 0, "hash": ""}, "a": {"size": 1, "hash": ""}}}\n',
        b'"number": 1, "number": 2}\n',
        b'"entries": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        b'"number": ' + b"9" * 100_000 + b"}\n",
        b"}\n",
        b'"x": 1',
        b"\xff\xfe}\n",
        b"",
    ],
    ids=["twice", "key twice", "deep", "huge number", "nothing", "cut", "no text", "empty"],
)
def test_manifests_that_make_no_sense_are_refused(checkpoint, rest):
    raw_sign(checkpoint, rest)
    with pytest.raises(CheckpointError, match="JSON|cannot be used"):
        opened(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(number="1"),
        lambda value: value.update(world_size=None),
        lambda value: value.update(files=[]),
        lambda value: value.update(entries={"a": 3}),
        lambda value: value["files"]["meta.json"].update(size=-1),
        lambda value: value["files"]["meta.json"].update(size=True),
        lambda value: value["entries"]["meta"].update(kind="pickle"),
        lambda value: value["entries"]["meta"].pop("path"),
        lambda value: value["entries"]["meta"].update(path="engine/other.json"),
        lambda value: value["entries"]["unit/model"]["tensors"]["a"].update(shape=[-1]),
        lambda value: value["entries"]["unit/model"]["tensors"]["a"].update(shape=[1] * 1000),
        lambda value: value["entries"]["unit/model"].update(tensors=[1]),
        lambda value: value.pop("step"),
    ],
    ids=[f"case {number}" for number in range(13)],
)
def test_every_field_is_checked(checkpoint, change):
    forge(checkpoint, change)
    with pytest.raises(CheckpointError, match="The manifest cannot be used"):
        opened(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model["tensors"]["a"].update(shape=[13]),
        lambda model: model["tensors"]["a"].update(dtype="int32"),
        lambda model: model["tensors"]["a"].update(dtype="object"),
        lambda model: model["tensors"].pop("b"),
        lambda model: model["tensors"].update(c={"dtype": "float32", "shape": [1]}),
        lambda model: model["tensors"]["part"].update(offset=40),
        lambda model: model["tensors"]["part"].update(shape=[2**40], stride=[0]),
        lambda model: model["tensors"]["part"].update(shape=[2], stride=[2**62]),
        lambda model: model["tensors"]["part"].update(stride=[]),
        lambda model: model["tensors"]["part"].update(of="nothing"),
        lambda model: model["tensors"]["part"].update(of="tied"),
        lambda model: model["tensors"]["part"].update(shape=[0]),
        lambda model: model.update(hidden={"a": {"dtype": "float32", "shape": [12]}}),
    ],
    ids=[f"case {number}" for number in range(13)],
)
def test_views_that_leave_their_memory_are_refused(checkpoint, change):
    forge(checkpoint, lambda value: change(value["entries"]["unit/model"]))
    with pytest.raises(CheckpointError, match=r"do not agree on the tensor|Unknown dtype|cannot be used"):
        opened(checkpoint)


# -- headers of tensor files ---------------------------------------------------------------------


def tensor_file(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(**changes):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "header has -1 bytes"),
        (b"1234567", "header has -1 bytes"),
        (tensor_file(one(), b"x" * 8, length=2**63), "header has 9,223,372,036,854,775,808 bytes"),
        (tensor_file(one(), b"x" * 8, length=10_000), "header has 10,000 bytes"),
        (tensor_file(one(), b"x" * 8, length=0), "header has 0 bytes"),
        (tensor_file(one(), b"x" * 4), "does not fit its bytes"),
        (tensor_file(one(data_offsets=[0, 2**50]), b"x" * 8), "does not fit its bytes"),
        (tensor_file(one(shape=[2**40, 2**40]), b"x" * 8), "does not fit its bytes"),
        (tensor_file(one(shape=[3]), b"x" * 8), "does not fit its bytes"),
        (tensor_file(one(data_offsets=[8, 0]), b"x" * 8), "does not fit its bytes"),
        (tensor_file(one(data_offsets=[-8, 0]), b"x" * 8), "data_offsets"),
        (tensor_file(one(shape=[1] * 100), b"x" * 4), "shape"),
        (tensor_file(one(shape="2"), b"x" * 8), "shape"),
        (tensor_file(one(dtype="F33"), b"x" * 8), "unknown dtype"),
        (tensor_file(one(dtype=["F32"]), b"x" * 8), "unknown dtype"),
        (tensor_file(one(extra=1), b"x" * 8), "no dtype, shape and data_offsets"),
        (tensor_file({"a": None}), "no dtype, shape and data_offsets"),
        (tensor_file(one(), b"x" * 12), "4 bytes belong to no tensor"),
        (tensor_file(one() | {"b": one()["a"]}, b"x" * 8), "begins at byte 0, not 8"),
        (tensor_file(one(data_offsets=[4, 12]), b"x" * 12), "begins at byte 4, not 0"),
        (tensor_file([1, 2]), "JSON list"),
        (tensor_file(b"{" * 1000), "Not readable as JSON"),
        (tensor_file(b'{"a": 1, "a": 2}'), "'a' is there twice"),
    ],
    ids=[f"case {number}" for number in range(23)],
)
def test_headers_that_lie_are_refused(checkpoint, data, reason):
    rewrite(checkpoint, "unit/model.safetensors", data)
    with pytest.raises(CheckpointError, match=reason) as caught:
        opened(checkpoint)
    assert caught.value.where.endswith("unit/model.safetensors")


def test_a_folder_full_of_lies_has_no_latest(checkpoint, caplog):
    forge(checkpoint, lambda value: value["entries"]["meta"].update(path="../x"))
    assert CheckpointStore().latest(checkpoint.parent) is None
    assert "not a path inside the checkpoint" in caplog.text
