"""Files of weights: named, cut, tied and read as other libraries do; nothing is lost when a save fails."""

import ctypes
import errno
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from accel_core.errors import CheckpointError, ConfigError
from accel_state import weights
from accel_state.checkpoint.files import Files
from accel_state.checkpoint.hashing import PIECE

safetensors = pytest.importorskip("safetensors")


class Tied(nn.Module):
    """An embedding whose matrix is that of the last layer too, and buffers of several dtypes."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def same(one, other):
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert one[name].equal(other[name]), name


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def random(seed=0):
    torch.manual_seed(seed)
    model = Tied()
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randint(0, 99, tensor.shape))
    return model


# -- names and contents --------------------------------------------------------------------------


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(("size", "count"), [("1kB", 1), (70, 2), (1, 6)])
def test_what_is_saved_is_read(tmp_path, safe, size, count):
    model, other = random(), random(1)
    written = weights.save(model.state_dict(), tmp_path, max_shard_size=size, safe_serialization=safe)
    stem, ending = ("model", ".safetensors") if safe else ("pytorch_model", ".bin")
    single = [f"{stem}{ending}"]
    several = [f"{stem}-{number:05d}-of-{count:05d}{ending}" for number in range(1, count + 1)]
    expected = single if count == 1 else [*several, f"{stem}{ending}.index.json"]
    assert [path.name for path in written] == expected
    assert names(tmp_path) == sorted(expected)
    found = weights.read(tmp_path)
    assert "embed.weight" in found
    assert repr(found) == f"<Weights, 7 tensors in {count} files>"
    other.load_state_dict(found)
    same(other.state_dict(), model.state_dict())


def test_the_library_reads_our_files_and_knows_what_is_tied(tmp_path):
    from safetensors.torch import load_model

    model, other = random(), random(1)
    weights.save(model.state_dict(), tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "head.weight": "embed.weight"}
        assert "head.weight" not in set(file.keys())
    assert load_model(other, tmp_path / "model.safetensors") == (set(), [])
    same(other.state_dict(), model.state_dict())


def test_we_read_the_library_s_files(tmp_path):
    from safetensors.torch import save_model

    model, other = random(), random(1)
    save_model(model, tmp_path / "model.safetensors")
    found = weights.read(tmp_path)
    other.load_state_dict(found)
    same(other.state_dict(), model.state_dict())
    assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()


def test_the_hub_s_reader_loads_shards(tmp_path):
    serialization = pytest.importorskip("huggingface_hub.serialization")
    model, other = random(), random(1)
    weights.save(model.state_dict(), tmp_path, max_shard_size=70)
    result = serialization.load_torch_model(other, tmp_path, strict=False)
    assert (list(result.missing_keys), list(result.unexpected_keys)) == (["head.weight"], [])
    same(other.state_dict(), model.state_dict())


def test_the_index_says_how_much_and_where(tmp_path):
    weights.save(random().state_dict(), tmp_path, max_shard_size=70)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 60 + 4 * 12 + 8}
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert index["weight_map"] == {"embed.weight": first} | dict.fromkeys(
        [f"norm.{name}" for name in ("bias", "num_batches_tracked", "running_mean", "running_var", "weight")],
        second,
    )


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    limit=st.integers(1, 100),
    ties=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=4),
    safe=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_shard_is_larger_than_asked_and_nothing_is_lost(tmp_path_factory, sizes, limit, ties, safe):
    state = {f"t{number}": torch.rand(size) for number, size in enumerate(sizes)}
    for one, other in ties:
        if f"t{one}" in state and f"t{other}" in state:
            state[f"t{one}"] = state[f"t{other}"]
    folder = tmp_path_factory.mktemp("weights")
    *written, last = weights.save(state, folder, max_shard_size=limit, safe_serialization=safe)
    found = weights.read(folder)
    assert set(found) == set(state)
    assert all(found[name].equal(state[name]) for name in state)
    for file in written:
        part = weights.read(file)
        kept = {value.untyped_storage().data_ptr(): value.nbytes for value in part.values() if value.numel()}
        assert sum(kept.values()) <= limit or len(kept) == 1
    stored = {state[name].data_ptr(): state[name].nbytes for name in state if state[name].numel()}
    if written:
        assert json.loads(last.read_text())["metadata"]["total_size"] == sum(stored.values())


@pytest.mark.parametrize("safe", [True, False])
def test_memory_that_is_partly_shared_is_stored_whole(tmp_path, safe):
    base = torch.arange(1000.0).reshape(10, 100)
    state = {"part": base[1], "base": base, "turned": base.t(), "expanded": base[:, :1].expand(10, 3)}
    weights.save(state, tmp_path, safe_serialization=safe)
    found = weights.read(tmp_path)
    assert all(found[name].equal(state[name]) for name in state)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 2 * base.nbytes + 3000


def test_a_tensor_called_format_may_be_tied(tmp_path):
    tensor = torch.rand(3)
    weights.save({"a": tensor, "format": tensor}, tmp_path)
    found = weights.read(tmp_path)
    assert found["a"].equal(tensor)
    assert found["format"].equal(tensor)


class Watching(Files):
    """Note the addresses that are written."""

    def __init__(self):
        self.addresses = []

    def write(self, file, data):
        if not data.readonly:  # the header is no tensor's
            address = ctypes.addressof(ctypes.c_ubyte.from_buffer(data))
            self.addresses.append((address, len(data)))
        return super().write(file, data)


def test_no_tensor_is_copied(tmp_path):
    state = {"a": torch.rand(3 * PIECE // 4 + 5), "b": torch.rand(1000, 1000)}
    files = Watching()
    weights.save(state, tmp_path, max_shard_size="5MB", files=files)
    inside = {
        (address, size)
        for address, size in files.addresses
        for tensor in state.values()
        if tensor.data_ptr() <= address and address + size <= tensor.data_ptr() + tensor.nbytes
    }
    assert sum(size for _, size in inside) == sum(tensor.nbytes for tensor in state.values())
    assert max(size for _, size in files.addresses) <= PIECE


# -- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10GB", 10 * 10**9),
        ("200MB", 2 * 10**8),
        ("1GiB", 2**30),
        (" 1.5 MiB ", 3 * 2**19),
        ("2kB", 2000),
        ("2KB", 2000),
        ("1TB", 10**12),
        ("7B", 7),
        (4096, 4096),
    ],
)
def test_sizes(text, size):
    assert weights.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["10", "10Gb", "GB", "-1GB", "1e3B", "", "10 XB", 0, -5, True, 1.5, None, "0B"]
)
def test_what_is_no_size_is_refused(text, tmp_path):
    with pytest.raises(ConfigError, match="max_shard_size=.*(is no size|one byte at least)"):
        weights.save({"a": torch.ones(1)}, tmp_path / "new", max_shard_size=text)
    assert not (tmp_path / "new").exists()


# -- one save after another ----------------------------------------------------------------------


LAYOUTS = [(safe, size) for safe in (True, False) for size in ("1MB", 70)]


@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_the_latest_save_is_what_is_read(tmp_path, first, second):
    own = tmp_path / "notes.txt"
    own.write_text("mine")
    old, new = random(), random(1)
    for model, (safe, size) in ((old, first), (new, second)):
        weights.save(model.state_dict(), tmp_path, max_shard_size=size, safe_serialization=safe)
    found = random(2)
    found.load_state_dict(weights.read(tmp_path))
    same(found.state_dict(), new.state_dict())
    ending = ".safetensors" if second[0] else ".bin"
    of_new = [name for name in names(tmp_path) if ending in name]
    assert len(of_new) == {"1MB": 1, 70: 3}[second[1]]
    assert own.read_text() == "mine"


class Failing(Files):
    """Fail at the operation number ``at``; if ``dead``, at all that come after it too, as if killed there."""

    def __init__(self, at, code=errno.ENOSPC, *, dead=False):
        self.at, self.code, self.dead, self.count = at, code, dead, 0

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name not in vars(Files):
            return found

        def counted(*arguments):
            self.count += 1
            if self.count == self.at or (self.dead and self.count > self.at):
                raise OSError(self.code, os.strerror(self.code))
            return found(*arguments)

        return counted


def outcome(folder, **states):
    """Return which of the states is read, or that it is none; fail when it is a mixture."""
    shown = [name for name in names(folder) if not name.startswith(".")]
    if not any(name.endswith((".json", "l.safetensors", "l.bin")) for name in shown):
        with pytest.raises(CheckpointError, match="no index that says which"):
            weights.read(folder)
        return "none"
    found = dict(weights.read(folder))
    same_as = [key for key, state in states.items() if all(found[name].equal(state[name]) for name in state)]
    assert len(same_as) == 1, "mixed"
    return same_as[0]


@pytest.mark.parametrize(
    ("safe", "layouts"),
    [
        (True, (70, 70)),
        (True, (70, 50)),
        (True, ("1MB", 70)),
        (True, (70, "1MB")),
        (False, ("1MB", 70)),
    ],
)
def test_wherever_it_is_killed_the_old_or_the_new_is_read_or_an_error_says_why(tmp_path, layouts, safe):
    old, new = random().state_dict(), random(1).state_dict()
    counting = Failing(0)
    rehearsal = tmp_path / "rehearsal"
    for files, state, size in ((None, old, layouts[0]), (counting, new, layouts[1])):
        weights.save(state, rehearsal, max_shard_size=size, safe_serialization=safe, files=files)
    outcomes = set()
    for at in range(1, counting.count + 1):
        folder = tmp_path / str(at)
        weights.save(old, folder, max_shard_size=layouts[0], safe_serialization=safe)
        with suppress(CheckpointError):
            killed = Failing(at, dead=True)
            weights.save(new, folder, max_shard_size=layouts[1], safe_serialization=safe, files=killed)
        outcomes.add(outcome(folder, old=old, new=new))
    # Only where files of one name are replaced one after the other can there be neither.
    assert outcomes - {"none"} == {"old", "new"}
    assert ("none" in outcomes) == (layouts == (70, 70))


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, r"No space left on device \([\d,]+ of [\d,]+ bytes are free\)"),
        (errno.EIO, "Input/output"),
    ],
)
def test_a_full_or_failing_disk_is_named_and_leaves_the_old_weights(tmp_path, safe, code, said):
    weights.save({"a": torch.ones(2)}, tmp_path, safe_serialization=safe)
    with pytest.raises(CheckpointError, match=f"Could not write a file of weights: {said}"):
        weights.save({"a": torch.zeros(2)}, tmp_path, safe_serialization=safe, files=Failing(2, code))
    assert weights.read(tmp_path)["a"].tolist() == [1.0, 1.0]
    assert len(names(tmp_path)) == 1


def test_what_a_killed_save_left_goes_after_a_day(tmp_path):
    left, fresh = (tmp_path / f".model.safetensors.accel-{token * 12}" for token in "ab")
    for each in (left, fresh):
        each.write_bytes(b"half")
    os.utime(left, (0, 0))
    weights.save({"a": torch.ones(1)}, tmp_path)
    assert names(tmp_path) == [fresh.name, "model.safetensors"]


def test_a_file_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file, and weights are saved into a folder"):
        weights.save({"a": torch.ones(1)}, tmp_path / "file")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"a": 1}, "'a' cannot be stored: it is a int"),
        ({1: torch.ones(1)}, "its name is a int"),
        ({"a": torch.ones(2, device="meta")}, "meta device"),
        ({"a": torch.eye(2).to_sparse()}, "its layout is torch.sparse_coo"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, "no name for the dtype of 1 tensors"),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path, state, said):
    with pytest.raises(CheckpointError, match=said):
        weights.save(state, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# -- what is wrong with files --------------------------------------------------------------------


def sharded(folder):
    weights.save(random().state_dict(), folder, max_shard_size=70)
    return folder / "model.safetensors.index.json"


def changed(index, **places):
    value = json.loads(index.read_text())
    value["weight_map"] |= places
    index.write_text(json.dumps(value))


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "a/../../b", "C:/x", "..\\x", "", "a//b", "a\0b"]
)
def test_an_index_that_leads_out_is_refused(tmp_path, name):
    weights.save(random().state_dict(), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = sharded(tmp_path / "model")
    changed(index, **{"embed.weight": name})
    with pytest.raises(CheckpointError, match="no path inside its folder"):
        weights.read(tmp_path / "model")


def test_an_index_that_names_what_is_not_there(tmp_path):
    index = sharded(tmp_path)
    changed(index, **{"norm.bias": "model-00001-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match=r"do not agree: 'norm.bias' is not in"):
        weights.read(tmp_path)
    changed(index, **{"norm.bias": "lost.safetensors"})
    with pytest.raises(
        CheckpointError, match=r"'lost.safetensors', which is not there\.\n  where:.*norm.bias"
    ):
        weights.read(tmp_path)


@pytest.mark.parametrize(
    "text", ["[]", '{"weight_map": []}', '{"a": 1}', '{"a": "x", "a": "y"}', "{", "\xff"]
)
def test_an_index_that_is_none(tmp_path, text):
    sharded(tmp_path).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="index|JSON"):
        weights.read(tmp_path)


def test_a_huge_index_is_not_read(tmp_path):
    index = sharded(tmp_path)
    os.truncate(index, 200 << 20)
    with pytest.raises(CheckpointError, match="has 209,715,200 bytes"):
        weights.read(tmp_path)


def test_files_of_two_saves_that_say_different_things(tmp_path):
    index = sharded(tmp_path)
    value = json.loads(index.read_text())
    file = value["weight_map"].pop("norm.bias")
    index.write_text(json.dumps(value))
    assert "norm.bias" in weights.read(tmp_path), "an index may forget one"
    other = next(name for name in value["weight_map"].values() if name != file)
    (tmp_path / other).write_bytes((tmp_path / file).read_bytes())
    changed(index, **{"embed.weight": file})
    with pytest.raises(CheckpointError, match="do not agree"):
        weights.read(tmp_path)


def test_the_documented_index_without_metadata(tmp_path):
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "first_state_dict.bin")
    torch.save({"b.weight": torch.zeros(2)}, tmp_path / "second_state_dict.bin")
    index = {"a.weight": "first_state_dict.bin", "b.weight": "second_state_dict.bin"}
    (tmp_path / "index.json").write_text(json.dumps(index))
    for path in (tmp_path, tmp_path / "index.json"):
        assert {name: value.tolist() for name, value in weights.read(path).items()} == {
            "a.weight": [1.0, 1.0],
            "b.weight": [0.0, 0.0],
        }


def test_links_of_a_download_cache_are_followed(tmp_path):
    weights.save({"a": torch.ones(2)}, tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/model.safetensors")
    assert weights.read(tmp_path / "snapshot")["a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
@pytest.mark.parametrize("keep", [0, 4, 20, 200])
def test_a_file_cut_short(tmp_path, ending, keep):
    (file,) = weights.save({"a": torch.ones(99)}, tmp_path, safe_serialization=ending == ".safetensors")
    os.truncate(file, keep)
    with pytest.raises(CheckpointError):
        dict(weights.read(tmp_path))


def test_a_header_that_lies(tmp_path):
    (file,) = weights.save({"a": torch.ones(99)}, tmp_path)
    file.write_bytes(file.read_bytes().replace(b"[99]", b"[98]"))
    with pytest.raises(CheckpointError, match="does not fit its bytes"):
        weights.read(tmp_path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("content", [{"a": Bomb()}, Bomb(), {"a": torch.ones(1), "b": Bomb()}])
@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch, content, archive):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=archive)
    with pytest.raises(CheckpointError, match="holds more than tensors and plain containers"):
        weights.read(tmp_path)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.ones(1)}, torch.ones(2)])
def test_what_is_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="tensors by name"):
        weights.read(tmp_path)


def test_old_files_of_torch_are_read(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert weights.read(tmp_path)["a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_what_is_no_file_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="is no (file|index)"):
        weights.read(tmp_path)


def test_several_processes_may_write_the_same_folder(tmp_path):
    """As with save_on_each_node on a file system that the machines share: all write the same."""
    state = random().state_dict()

    class Meeting(Files):
        """Let another save run from beginning to end before the first operation that changes names."""

        met = False

        def replace(self, old, new):
            if not self.met:
                self.met = True
                weights.save(state, tmp_path, max_shard_size=70)
            super().replace(old, new)

        def remove(self, path):
            if "accel-" not in path.name:
                Path(path).unlink(missing_ok=True)  # the other one was faster
            super().remove(path)

    weights.save(random(1).state_dict(), tmp_path, max_shard_size=30)
    weights.save(state, tmp_path, max_shard_size=70, files=Meeting())
    found = weights.read(tmp_path)
    assert all(found[name].equal(state[name]) for name in state)
    assert len(names(tmp_path)) == 3


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"holds no weights\.\n  where: it holds: notes.txt"):
        weights.read(tmp_path)
    with pytest.raises(CheckpointError, match="There is no file"):
        weights.read(tmp_path / "nowhere")
    sharded(tmp_path).unlink()
    with pytest.raises(CheckpointError, match="no index that says which: a save was stopped"):
        weights.read(tmp_path)
