"""State copied to host memory: equal to what a direct save writes, whatever happens to the state after."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from accel_core.errors import CheckpointError
from accel_core.protocols import StateSink
from accel_core.testing.stores import MemorySink
from accel_state.checkpoint import CheckpointStore, SnapshotSink
from accel_state.checkpoint.memory import HostMemory


def committed(path, write):
    """Return what a checkpoint at ``path`` holds after ``write(sink)``."""
    store = CheckpointStore()
    with store.save(path) as sink:
        write(sink)
    return store.open(path)


def files(source):
    return {path: record.hash for path, record in source.manifest.files.items()}


def both(tmp_path, write, spoil=lambda: None):
    """Return what a direct save and one by way of a snapshot hold; ``spoil`` runs in between."""
    direct = committed(tmp_path / "direct", write)
    snapshot = SnapshotSink(near=tmp_path / "later")
    write(snapshot)
    snapshot.seal()
    spoil()
    later = committed(tmp_path / "later", snapshot.replay)
    snapshot.release()
    return direct, later


def test_it_is_a_sink():
    assert isinstance(SnapshotSink(), StateSink)


def test_a_later_change_of_the_state_changes_nothing(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    content = {"steps": [1, 2], "inner": {"lr": 0.1, "nan": float("inf")}}

    def write(sink):
        sink.tensors("u/model", model.state_dict())
        sink.json("run", content)

    def spoil():
        for value in model.state_dict().values():
            value.fill_(7)
        content["steps"].append(3)
        content["inner"]["lr"] = 9

    direct, later = both(tmp_path, write, spoil)
    assert files(later) == files(direct)
    assert later.manifest.entries == direct.manifest.entries
    assert later.json("run")["steps"] == [1, 2]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_shared_memory_comes_back_as_a_direct_save_has_it(tmp_path_factory, data):
    """Any views of any dtype into a few storages: tied, overlapping, strided, empty, in any order."""
    dtypes = (torch.float32, torch.uint8, torch.float64, torch.bfloat16, torch.complex64, torch.int16)
    bases = [torch.arange(64, dtype=torch.uint8).clone() for _ in range(2)]
    values = {}
    for number in range(data.draw(st.integers(1, 5))):
        base = data.draw(st.sampled_from(bases))
        dtype = data.draw(st.sampled_from(dtypes))
        whole = base.view(dtype)
        start = data.draw(st.integers(0, len(whole) - 1))
        part = whole[start : data.draw(st.integers(start, len(whole)))]
        step = data.draw(st.integers(1, 3))
        values[f"t{number}"] = part[::step]
    values["alone"] = torch.ones(3, 2).t()

    def write(sink):
        sink.tensors("t", values)

    folder = tmp_path_factory.mktemp("views")
    refusal = refused(lambda: committed(folder / "refused", write))
    if refusal:
        # What a store refuses is refused when it is given, not later in the background.
        assert refused(lambda: write(SnapshotSink())) == refusal
        return
    direct, later = both(folder, write)
    assert layout(later.tensors("t")) == layout(direct.tensors("t"))


def refused(action):
    """Return the message of a refusal, or nothing."""
    try:
        action()
    except CheckpointError as error:
        return str(error)
    return ""


def layout(tensors):
    """Return everything about tensors but where their memory begins."""
    found = {}
    for name, tensor in tensors.items():
        # Memory is called by its first user; which of two comes first in a file may differ.
        user, start = next(
            (other, tensor.data_ptr() - each.data_ptr())
            for other, each in tensors.items()
            if other == name or (tensor.numel() and each.numel() and overlap(tensor, each))
        )
        found[name] = (user, start, tensor.dtype, tensor.shape, tensor.stride(), tensor.tolist())
    return found


def overlap(one, two):
    begin, other = one.data_ptr(), two.data_ptr()
    return begin < other + reach(two) and other < begin + reach(one)


def reach(tensor):
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (sum((size - 1) * stride for size, stride in steps) + 1) * tensor.element_size()


@pytest.mark.parametrize(
    "dtype",
    [torch.int4, torch.uint2, torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2],
    ids=str,
)
def test_dtypes_that_torch_barely_knows(tmp_path, dtype):
    value = torch.arange(16, dtype=torch.uint8).view(dtype).reshape(4, 4)
    direct, later = both(tmp_path, lambda sink: sink.tensors("t", {"v": value}))
    assert files(later) == files(direct)


def test_memory_is_used_again(tmp_path):
    memory = HostMemory()
    values = {"a": torch.ones(1000), "b": torch.ones(10, dtype=torch.int64)}

    def taken(tensors):
        snapshot = SnapshotSink(memory)
        snapshot.tensors("t", tensors)
        snapshot.seal()
        found = MemorySink()
        places = {key: tensor.data_ptr() for key, tensor in snapshot._kept["t"].items()}
        snapshot.replay(found)
        snapshot.release()
        return places, found.store.tensors["t"]

    first, _ = taken(values)
    again, found = taken({key: value + 1 for key, value in values.items()})
    assert again == first
    assert found["a"].equal(torch.full((1000,), 2.0))
    assert memory.nbytes == 4080
    # What fits no more is replaced, and what nobody asks for is let go.
    _, found = taken({"a": torch.zeros(2000)})
    assert found["a"].equal(torch.zeros(2000))
    assert memory.nbytes == 8000
    memory.clear()
    assert memory.nbytes == 0


def test_copies_made_in_inference_mode_can_be_made_again_outside(tmp_path):
    memory = HostMemory()
    with torch.inference_mode():
        SnapshotSink(memory).tensors("t", {"a": torch.ones(3)})
    snapshot = SnapshotSink(memory)
    snapshot.tensors("t", {"a": torch.full((3,), 2.0, requires_grad=True)})
    source = committed(tmp_path / "one", snapshot.replay)
    assert source.tensors("t")["a"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("near", ["beside", "nowhere", "memory://bucket/one"])
def test_files_of_components_are_moved_in(tmp_path, near, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    place = tmp_path / "checkpoints" / "one"
    snapshot = SnapshotSink(near={"beside": place, "nowhere": None}.get(near, near))
    folder = snapshot.directory("engine/zero")
    assert list(folder.iterdir()) == []
    (folder / "inner").mkdir()
    (folder / "inner" / "x.bin").write_bytes(b"abc")
    (folder / ".hidden").write_bytes(b"")
    inode = (folder / "inner" / "x.bin").stat().st_ino
    source = committed(place, snapshot.replay)
    snapshot.release()
    moved = source.directory("engine/zero") / "inner" / "x.bin"
    assert moved.read_bytes() == b"abc"
    assert set(files(source)) == {"engine/zero/inner/x.bin", "engine/zero/.hidden"}
    # One file system: not a byte was copied.
    assert moved.stat().st_ino == inode
    assert [each.name for each in place.parent.iterdir()] == ["one"]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_folder_of_a_dead_process_is_removed_by_the_next_save(tmp_path):
    place = tmp_path / "one"
    pid = os.fork()
    if not pid:
        (SnapshotSink(near=place).directory("engine") / "x").write_bytes(b"1")
        os._exit(0)
    os.waitpid(pid, 0)
    assert [each.name[:19] for each in tmp_path.iterdir()] == [".one.accel-writing-"]
    committed(place, lambda sink: sink.json("a", 1))
    assert [each.name for each in tmp_path.iterdir()] == ["one"]


def test_what_another_rank_wrote_is_not_replaced(tmp_path):
    snapshot = SnapshotSink(near=tmp_path / "one")
    (snapshot.directory("engine") / "x").write_bytes(b"mine")
    store = CheckpointStore()
    sink = store.begin(tmp_path / "one")
    (sink.directory("engine") / "x").write_bytes(b"other")
    sink.part.entries.clear()
    with pytest.raises(CheckpointError, match=r"File exists[\s\S]*engine/x[\s\S]*on one rank"):
        snapshot.replay(sink)
    store.abort(sink)
    snapshot.release()
    assert list(tmp_path.iterdir()) == []


def cases():
    snapshot_json = lambda value: lambda sink: sink.json("x", value)  # noqa: E731 - a table
    return {
        "set": (snapshot_json({"a": {1}}), r"value\['a'\] is a set"),
        "int key": (snapshot_json({1: 2}), "has the key 1, a int"),
        "twice": (lambda sink: [sink.json("x", 1), sink.tensors("x", {})], "'x' was written before"),
        "outside": (lambda sink: sink.directory("../x"), "begins with a dot"),
        "meta": (lambda sink: sink.tensors("x", {"w": torch.ones(2, device="meta")}), "'w' cannot be stored"),
        "no tensor": (lambda sink: sink.tensors("x", {"w": 3}), "it is a int, not a tensor"),
        "sparse": (
            lambda sink: sink.tensors("x", {"w": torch.eye(2).to_sparse()}),
            "its layout is torch.sparse_coo",
        ),
        "link": (
            lambda sink: [(sink.directory("x") / "l").symlink_to("/etc/hostname"), sink.seal()],
            "no links",
        ),
    }


@pytest.mark.parametrize("case", cases())
def test_what_cannot_be_stored_is_refused_at_once(tmp_path, case):
    write, message = cases()[case]
    snapshot = SnapshotSink(near=tmp_path / "one")
    with pytest.raises(CheckpointError, match=message):
        write(snapshot)
    snapshot.release()


def test_a_snapshot_whose_memory_was_given_on_is_dead(tmp_path):
    memory = HostMemory()
    old = SnapshotSink(memory)
    old.json("x", 1)
    new = SnapshotSink(memory)
    for use in (lambda: old.json("y", 1), lambda: old.replay(MemorySink())):
        with pytest.raises(CheckpointError, match="memory is that of a later one"):
            use()
    new.seal()
    with pytest.raises(CheckpointError, match="complete"):
        new.json("y", 1)
    new.release()
    with pytest.raises(CheckpointError, match="ended"):
        new.replay(MemorySink())


def test_names_of_folders_are_only_made_when_asked_for(tmp_path):
    SnapshotSink(near=tmp_path / "deep" / "one").json("a", 1)
    assert not (tmp_path / "deep").exists()
