"""Files of weights as tensors: the bytes that the library wrote, at the place in the file, without a copy."""

import copy
import io
import json
import pickle

import pytest
import torch

from accel_bigmodel.weights import CheckpointWeights, Location, open_weights
from accel_bigmodel.weights.mapped import DTYPES, MappedFile, _joined
from accel_core.errors import CheckpointError
from accel_core.weights.header import WIDTHS

safetensors = pytest.importorskip("safetensors.torch")


def every_dtype():
    torch.manual_seed(0)
    found = {}
    for code, dtype in DTYPES.items():
        data = torch.randint(0, 2 if dtype == torch.bool else 255, (24 * dtype.itemsize,), dtype=torch.uint8)
        found[f"of.{code}"] = data.view(dtype).view(2, 3, 4)
    return found | {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "hollow": torch.empty(3, 0)}


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []


def raw(path, tensors, texts=None):
    """Write a file by hand, as its format says: (name, code, shape, bytes)."""
    header, place, body = {}, 0, b""
    if texts:
        header["__metadata__"] = texts
    for name, code, shape, data in tensors:
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [place, place + len(data)]}
        place += len(data)
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def test_every_dtype_comes_back_as_the_library_wrote_it(tmp_path):
    tensors = every_dtype()
    # The library cannot write the one that its own reader does not know.
    known = {name: value for name, value in tensors.items() if name != "of.F8_E8M0"}
    safetensors.save_file(known, tmp_path / "model.safetensors")
    found = open_weights(tmp_path)
    assert set(found) == set(known)
    assert repr(found) == f"<CheckpointWeights, {len(known)} tensors in 1 files>"
    for name, value in known.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert bits(found[name]) == bits(value), name
    assert set(WIDTHS) >= set(DTYPES)
    assert all(WIDTHS[code] == dtype.itemsize for code, dtype in DTYPES.items())


def test_twice_the_same_memory_and_never_more_than_its_own(tmp_path):
    safetensors.save_file({"a": torch.arange(6.0), "b": torch.ones(3)}, tmp_path / "model.safetensors")
    found = open_weights(tmp_path)
    assert found["a"].data_ptr() == found["a"].data_ptr()
    assert found["a"].untyped_storage().data_ptr() != found["b"].untyped_storage().data_ptr()
    # What copies a tensor copies its storage: not the file with it.
    assert found["a"].untyped_storage().nbytes() == 24
    assert copy.deepcopy(found["a"]).untyped_storage().nbytes() == 24
    stream = io.BytesIO()
    torch.save(found["a"], stream)
    assert len(stream.getvalue()) < 4096


def test_a_tensor_outlives_everything_else(tmp_path):
    safetensors.save_file({"a": torch.arange(6.0)}, tmp_path / "model.safetensors")
    tensor = open_weights(tmp_path)["a"]
    (tmp_path / "model.safetensors").unlink()
    assert tensor.tolist() == [0, 1, 2, 3, 4, 5]


def test_writing_to_one_never_reaches_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.save_file({"a": torch.zeros(6)}, path)
    before = path.read_bytes()
    open_weights(tmp_path)["a"].fill_(1)
    assert path.read_bytes() == before


def test_a_location_is_where_the_bytes_are(tmp_path):
    safetensors.save_file({"a": torch.arange(6.0), "b": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    found = open_weights(tmp_path)
    place = found.location("a")
    assert isinstance(place, Location)
    assert (place.dtype, place.shape) == (torch.float32, (6,))
    assert place.file.read_bytes()[place.begin : place.end] == bytes(bits(torch.arange(6.0)))
    found.will_need(["a", "b", "nobody"])


def test_tensors_that_begin_anywhere_are_still_right(tmp_path):
    numbers = torch.arange(5, dtype=torch.float64)
    data = bytes(bits(numbers))
    for shift in range(8):
        path = tmp_path / f"{shift}.safetensors"
        raw(path, [("pad", "U8", [shift + 1], b"\1" * (shift + 1)), ("a", "F64", [5], data)])
        tensor = open_weights(path)["a"]
        assert tensor.data_ptr() % 8 == 0
        assert tensor.equal(numbers)


def test_further_names_of_a_tensor_are_the_same_memory(tmp_path):
    path = raw(
        tmp_path / "model.safetensors",
        [("first", "F32", [2], bytes(bits(torch.ones(2))))],
        {"second": "first", "format": "pt", "author": "nobody"},
    )
    found = open_weights(path)
    assert list(found) == ["first", "second"]
    assert found["second"].data_ptr() == found["first"].data_ptr()
    assert found.location("second") == found.location("first")
    assert found.same_as("second") == "first" == found.same_as("first")


def test_what_torch_saved_is_read_without_running_it(tmp_path):
    values = {"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.bfloat16)}
    torch.save(values, tmp_path / "pytorch_model.bin")
    found = open_weights(tmp_path)
    assert all(found[name].equal(value) for name, value in values.items())
    assert found.location("a") is None
    found.will_need(["a"])
    torch.save({"a": 1}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="'a' is a int"):
        open_weights(tmp_path)
    torch.save([torch.ones(1)], tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds a list"):
        open_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(print))
    with pytest.raises(CheckpointError, match="pytorch_model.bin"):
        open_weights(tmp_path)


def test_the_folder_that_the_documents_show(tmp_path):
    first = {"linear1.weight": torch.ones(2, 2), "linear1.bias": torch.zeros(2)}
    second = {"linear2.weight": torch.full((2, 2), 2.0), "linear2.bias": torch.ones(2)}
    torch.save(first, tmp_path / "first_state_dict.bin")
    torch.save(second, tmp_path / "second_state_dict.bin")
    places = dict.fromkeys(first, "first_state_dict.bin") | dict.fromkeys(second, "second_state_dict.bin")
    (tmp_path / "index.json").write_text(json.dumps(places))
    found = open_weights(tmp_path)
    assert isinstance(found, CheckpointWeights)
    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in (first | second).items()
    }
    assert [path.name for path in found.files] == ["first_state_dict.bin", "second_state_dict.bin"]
    assert found.file("linear2.bias").name == "second_state_dict.bin"


def test_a_file_that_shrank_is_an_error_and_not_the_end_of_the_process(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.save_file({"a": torch.zeros(99)}, path)
    found = open_weights(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="had .* when its header was read"):
        found["a"]
    found.will_need(["a"])


def test_a_dtype_that_this_torch_lacks_is_said(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    safetensors.save_file({"a": torch.zeros(2)}, path)
    monkeypatch.delitem(DTYPES, "F32")
    with pytest.raises(CheckpointError, match="'a' is stored as F32"):
        MappedFile(path)


def test_files_larger_than_the_memory_of_the_machine_are_mapped(tmp_path):
    # Sparse: it takes no space. More than any machine that runs this has.
    size = 1 << 43
    text = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path = tmp_path / "model.safetensors"
    try:
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + size)
    except OSError:
        pytest.skip("this file system has no files of 8 TiB")
    tensor = open_weights(path)["a"]
    assert tensor.shape == (size,)
    assert tensor[-1] == 0


def test_ranges_that_meet_are_asked_for_once():
    assert list(_joined([(0, 4), (4, 8), (9, 9), (10, 12), (11, 20)])) == [(0, 8), (10, 20)]


def test_links_are_followed_as_caches_of_downloads_are_made_of_them(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    safetensors.save_file({"a": torch.ones(3)}, blobs / "0123")
    (snapshot / "model.safetensors").symlink_to("../blobs/0123")
    found = open_weights(snapshot)
    assert found["a"].tolist() == [1, 1, 1]
    assert found.location("a").file == (blobs / "0123").resolve()
