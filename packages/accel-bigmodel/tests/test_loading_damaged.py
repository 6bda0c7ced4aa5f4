"""Damaged and hostile checkpoints: a clear error each, nothing read outside, nothing half loaded."""

import json
import os
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from accel_bigmodel import (
    init_empty_weights,
    load_checkpoint_and_dispatch,
    load_checkpoint_in_model,
    load_state_dict,
)
from accel_core.errors import CheckpointError

safetensors = pytest.importorskip("safetensors.torch")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2)

    def forward(self, inputs):
        return self.second(self.first(inputs))


def values():
    torch.manual_seed(0)
    return {name: tensor.detach().clone() for name, tensor in Model().state_dict().items()}


def skeleton():
    with init_empty_weights():
        return Model()


def whole(folder):
    """Write a good file; return its bytes."""
    path = folder / "model.safetensors"
    safetensors.save_file(values(), path)
    return path.read_bytes()


def sharded(folder, **places):
    """Write two good files and an index that says ``places`` over what is right."""
    state = values()
    right = {}
    for number, stem in enumerate(("first", "second"), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        part = {name: value for name, value in state.items() if name.startswith(stem)}
        safetensors.save_file(part, folder / file)
        right |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": right | places}))
    return index


def header_of(raw):
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


class Opened:
    """The files that were opened, seen by an audit hook, which Python cannot take away again."""

    def __init__(self):
        self.paths = None
        sys.addaudithook(self._hook)

    def _hook(self, event, args):
        if self.paths is not None and event == "open" and isinstance(args[0], (str, bytes)):
            self.paths.append(os.fsdecode(args[0]))

    def __enter__(self):
        self.paths = []
        return self.paths

    def __exit__(self, *_):
        self.paths = None


@pytest.fixture(scope="module")
def opened():
    return Opened()


def refused(path, opened, *, match=None, folder=None):
    """Load in all ways; each must be a CheckpointError, leave the model alone and read inside only."""
    folder = folder or (path if path.is_dir() else path.parent)
    texts = []
    for load in (
        lambda model: load_checkpoint_in_model(model, path),
        lambda model: load_checkpoint_in_model(model, path, partial=True),
        lambda model: load_checkpoint_and_dispatch(model, path, {"": "disk"}),
    ):
        model = skeleton()
        before = dict(model.named_parameters())
        with opened as paths, pytest.raises(CheckpointError, match=match) as caught:
            load(model)
        outside = [each for each in paths if "secret" in each]
        assert not outside
        after = dict(model.named_parameters())
        assert all(after[name] is before[name] and after[name].is_meta for name in before)
        assert not hasattr(model, "hf_device_map")
        texts.append(str(caught.value))
    assert sorted(each.name for each in folder.iterdir() if each.is_dir()) == []
    return texts[0]


# -- by hand -------------------------------------------------------------------------------------


def lies():
    """Yield a name, and what it does to the header and the body of a good file."""
    name = "first.weight"

    def change(**what):
        return lambda header, body: ({**header, name: {**header[name], **what}}, body)

    yield "begins later", change(data_offsets=[8, 56])
    yield "ends behind the file", change(data_offsets=[0, 1 << 40], shape=[1 << 38])
    yield "ends before it begins", change(data_offsets=[48, 0])
    yield "negative", change(data_offsets=[-8, 40])
    yield "no numbers", change(data_offsets=["0", "48"])
    yield "floats", change(data_offsets=[0.0, 48.0])
    yield "larger shape", change(shape=[4, 4])
    yield "negative shape", change(shape=[-4, -3])
    yield "huge shape", change(shape=[1 << 62, 1 << 62])
    yield "unknown dtype", change(dtype="F31")
    yield "dtype of another width", change(dtype="F64")
    yield "dtype is a list", change(dtype=["F32"])
    yield "extra field", change(more=1)
    yield "no dtype", lambda header, body: ({**header, name: {"shape": [1], "data_offsets": [0, 4]}}, body)
    yield "a list", lambda header, body: ([header], body)
    yield "texts that are none", lambda header, body: ({**header, "__metadata__": {"a": 1}}, body)
    yield "bytes of nobody", lambda header, body: (header, body + b"1234")
    yield "too few bytes", lambda header, body: (header, body[:-4])
    yield "no body", lambda header, body: (header, b"")
    yield "overlap", lambda header, body: ({**header, "third": header[name]}, body)
    yield "not JSON", lambda header, body: (b'{"first.weight": ', body)
    yield "not UTF-8", lambda header, body: (b'{"\xff": 1}', body)
    yield "deep", lambda header, body: (b"[" * 100_000, body)
    yield (
        "twice",
        lambda header, body: (
            (text := json.dumps(header).encode())[:-1] + b", " + text[1:],
            body,
        ),
    )


@pytest.mark.parametrize("change", [each for _, each in lies()], ids=[name for name, _ in lies()])
def test_headers_that_cannot_be_true(tmp_path, opened, change):
    header, body = header_of(whole(tmp_path))
    changed, rest = change(header, body)
    (tmp_path / "model.safetensors").write_bytes(with_header(changed, rest))
    text = refused(tmp_path, opened)
    assert "model.safetensors" in text


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 40, 100, 200, -1, -40])
def test_files_that_end_early(tmp_path, opened, length):
    raw = whole(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(raw[:length])
    refused(tmp_path, opened)


@pytest.mark.parametrize("length", [2, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_whose_length_is_a_lie(tmp_path, opened, length):
    raw = whole(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + raw[8:])
    refused(tmp_path, opened)


def test_wrong_types_that_fit_are_found_beside_the_model(tmp_path, opened):
    header, body = header_of(whole(tmp_path))
    header["first.weight"]["dtype"] = "I32"
    (tmp_path / "model.safetensors").write_bytes(with_header(header, body))
    assert "first.weight: int32 in the checkpoint, float32 in the model" in refused(tmp_path, opened)


@pytest.mark.parametrize(
    "place",
    [
        "../secret.safetensors",
        "/secret.safetensors",
        "a/../../secret.safetensors",
        "./secret.safetensors",
        "..\\secret.safetensors",
        "C:\\secret.safetensors",
        "C:secret.safetensors",
        "a\0b",
        "..",
        ".",
        "",
    ],
)
def test_an_index_that_leads_elsewhere(tmp_path, opened, place):
    inside = tmp_path / "inside"
    inside.mkdir()
    safetensors.save_file(values(), tmp_path / "secret.safetensors")
    index = sharded(inside, **{"first.weight": place})
    refused(inside, opened)
    refused(index, opened, folder=inside)


def test_an_index_with_an_absolute_path_that_is_there(tmp_path, opened):
    inside = tmp_path / "inside"
    inside.mkdir()
    safetensors.save_file(values(), tmp_path / "secret.safetensors")
    sharded(inside, **{"first.weight": str(tmp_path / "secret.safetensors")})
    refused(inside, opened, match="no path inside its folder")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "no JSON object"),
        (b'{"weight_map": 3}', "no JSON object"),
        (b'{"weight_map": {"first.weight": 3}}', "no JSON object"),
        (b'{"weight_map": {"first.weight": null}}', "no JSON object"),
        (b'{"weight_map": {}}', "does not fit"),
        (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "twice"),
        (b'{"weight_map": {"first.weight": "gone.safetensors"}}', "not there"),
        (b"\xff\xfe", "JSON"),
    ],
)
def test_indexes_that_are_none(tmp_path, opened, text, match):
    sharded(tmp_path).write_bytes(text)
    if match == "does not fit":
        # Nothing at all is loaded, which partial=True allows.
        with pytest.raises(CheckpointError, match=match):
            load_checkpoint_in_model(skeleton(), tmp_path)
        return
    refused(tmp_path, opened, match=match)


def test_an_index_that_names_a_tensor_that_its_file_does_not_have(tmp_path, opened):
    sharded(tmp_path, **{"first.weight": "model-00002-of-00002.safetensors"})
    refused(tmp_path, opened, match="do not agree")


def test_a_name_in_two_files(tmp_path, opened):
    sharded(tmp_path)
    more = values() | {"other": torch.ones(2)}
    for number, stem in enumerate(("first", "second"), 1):
        part = {name: value for name, value in more.items() if name.startswith((stem, "other"))}
        safetensors.save_file(part, tmp_path / f"model-0000{number}-of-00002.safetensors")
    refused(tmp_path, opened, match="'other' is in")


def test_a_missing_file(tmp_path, opened):
    sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    refused(tmp_path, opened, match="not there")


def test_folders_in_the_place_of_files(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_checkpoint_in_model(skeleton(), tmp_path)
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="is no file"):
        load_checkpoint_in_model(skeleton(), tmp_path)
    with pytest.raises(CheckpointError, match="There is no file"):
        load_checkpoint_in_model(skeleton(), tmp_path / "nowhere")


def test_pipes_are_not_waited_for(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is no file"):
        load_checkpoint_in_model(skeleton(), tmp_path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    "content",
    [Evil(), {"first.weight": Evil()}, {"first.weight": 3}, [torch.ones(2)], {1: torch.ones(2)}, None],
    ids=["a call", "a call inside", "a number", "a list", "numbers for names", "nothing"],
)
def test_pickles_run_nothing(tmp_path, opened, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "pytorch_model.bin")
    refused(tmp_path, opened)
    assert not (tmp_path / "ran").exists()


# -- by chance -----------------------------------------------------------------------------------

many = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def attempt(path, expected):
    """Load what may be damaged: the right values, other values of the right kind, or a CheckpointError."""
    model = skeleton()
    before = dict(model.named_parameters())
    try:
        load_checkpoint_in_model(model, path, strict=True)
    except CheckpointError:
        assert all(tensor is before[name] for name, tensor in model.named_parameters())
        return
    for name, tensor in model.named_parameters():
        assert tensor.shape == expected[name].shape
        assert not tensor.is_meta


@many
@given(data=st.data())
def test_flipped_and_lost_bytes(tmp_path, data):
    raw = bytearray(whole(tmp_path))
    length = int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 8 + length + 16))
        raw[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(raw))))
    (tmp_path / "model.safetensors").write_bytes(raw[:cut])
    attempt(tmp_path, values())
    with_error(lambda: load_state_dict(tmp_path / "model.safetensors"))


def with_error(function):
    try:
        function()
    except CheckpointError:
        pass


odd = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted(values())


@many
@given(data=st.data())
def test_headers_of_anything(tmp_path, data):
    header, body = header_of(whole(tmp_path))
    name = data.draw(st.sampled_from([*NAMES, "__metadata__", "more"]))
    field = data.draw(st.sampled_from([None, "dtype", "shape", "data_offsets"]))
    value = data.draw(odd)
    if field is None or name not in header:
        header[name] = value
    else:
        header[name][field] = value
    (tmp_path / "model.safetensors").write_bytes(with_header(header, body))
    attempt(tmp_path, values())


@many
@given(
    places=st.dictionaries(
        st.sampled_from([*NAMES, "more"]),
        odd
        | st.sampled_from(
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "../x", "/x"]
        ),
        max_size=3,
    )
)
def test_indexes_of_anything(tmp_path, places):
    sharded(tmp_path, **places)
    attempt(tmp_path, values())


@settings(many, max_examples=40)
@given(data=st.data())
def test_flipped_bytes_of_what_torch_saved(tmp_path, data):
    path = tmp_path / "pytorch_model.bin"
    torch.save(values(), path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(raw))))
    path.write_bytes(raw[:cut])
    attempt(tmp_path, values())
