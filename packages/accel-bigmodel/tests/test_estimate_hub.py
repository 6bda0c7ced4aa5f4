"""Headers of models on a Hub, here a server on this machine: what is fetched, and what is refused how."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

from accel_bigmodel.estimate.bits import BITS
from accel_bigmodel.estimate.headers import read_headers
from accel_bigmodel.estimate.shapes import NoHeadersError, TensorShape
from accel_core.errors import CheckpointError, NotInstalledError

hub_library = pytest.importorskip("huggingface_hub")
import huggingface_hub.constants  # noqa: E402 - after the check that it is there


def load(name):
    spec = importlib.util.spec_from_file_location(f"bigmodel_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FakeHub = load("hub_server").FakeHub

pytestmark = pytest.mark.leaks(
    "threads", "files", reason="the Hub's library keeps its client for the process"
)


@pytest.fixture(scope="module")
def server():
    """Return a Hub without models."""
    hub = FakeHub()
    yield hub
    hub.close()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """Return the Hub, empty, as the one that the library asks; with a cache of its own."""
    for each in (server.models, server.faults, server.facts):
        each.clear()
    server.requests.clear()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    # The library reads its variables when it is imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return server


def safetensors(tensors):
    """Return a file of zeros."""
    header, place = {}, 0
    for name, (code, shape) in tensors.items():
        end = place + math.prod(shape) * BITS[code] // 8
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [place, end]}
        place = end
    return raw(header, place)


def raw(header, data):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


SMALL = {"a.weight": ("F32", [2, 3]), "b": ("BF16", [4])}


def test_a_model_of_one_file(hub):
    # Its data is larger than what is fetched.
    large = SMALL | {"c": ("F32", [500_000])}
    hub.models["bert"] = {"model.safetensors": safetensors(large), "config.json": b'{"hidden_size": 4}'}
    hub.facts["bert"] = {"library_name": "transformers"}
    headers = read_headers("bert")
    assert headers.tensors["b"] == TensorShape("BF16", (4,))
    assert len(headers.tensors) == 3
    assert headers.config == {"hidden_size": 4}
    assert headers.library == "transformers"
    ranges = [sent for method, path, sent in hub.requests if path.endswith(".safetensors")]
    assert ranges, "headers were not read"
    assert all(sent is not None for sent in ranges), "a whole file of weights was fetched"


def test_a_model_of_several_files_is_read_from_one_commit(hub):
    places = {"a.weight": "x-1.safetensors", "b": "x-2.safetensors"}
    hub.models["owner/model"] = {
        "model.safetensors.index.json": json.dumps({"weight_map": places}).encode(),
        **{file: safetensors({name: SMALL[name]}) for name, file in places.items()},
    }
    assert list(read_headers("owner/model", revision="main").tensors) == ["a.weight", "b"]
    files = [path for _, path, _ in hub.requests if "resolve" in path]
    assert {path.split("/")[4] for path in files} == {hub.commit("owner/model")}


def test_a_long_header_takes_a_second_range(hub):
    tensors = {f"a.rather.long.name.{number}.weight": ("F32", [1]) for number in range(3000)}
    hub.models["o/long"] = {"model.safetensors": safetensors(tensors)}
    assert len(read_headers("o/long").tensors) == 3000


FAULTS = {
    "gated": "o/m is gated",
    "unauthorized": "refused to answer: .*401(.|\n)*log in again",
    "broken": "refused to answer: .*500(.|\n)*try again later",
    "short ranges": "header of a tensor file is wrong",
    "breaks off": "does not answer",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hub_that_refuses_or_breaks(hub, fault):
    tensors = {f"a.rather.long.name.{number}.weight": ("F32", [1]) for number in range(3000)}
    hub.models["o/m"] = {"model.safetensors": safetensors(tensors)}
    hub.faults["o/m"] = fault
    with pytest.raises(CheckpointError, match=FAULTS[fault]) as caught:
        read_headers("o/m")
    assert hub.url in str(caught.value) or "model.safetensors of o/m" in str(caught.value)


def test_a_name_that_is_not_there(hub):
    with pytest.raises(CheckpointError, match=r"no model o/none that you may see(.|\n)*HF_TOKEN"):
        read_headers("o/none")


def test_a_revision_that_is_not_there(hub):
    hub.models["o/m"] = {"model.safetensors": safetensors(SMALL)}
    with pytest.raises(CheckpointError, match="no revision 'v9'"):
        read_headers("o/m", revision="v9")


def entry(shape=(4,), offsets=(0, 16), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "more than the file": raw({"a": entry([4000], [0, 16000])}, 16),
    "shape and bytes": raw({"a": entry([5])}, 16),
    "overlap": raw({"a": entry(), "b": entry()}, 16),
    "negative": raw({"a": entry([-4])}, 16),
    "text": raw({"a": entry(["4"])}, 16),
    "unknown dtype": raw({"a": entry(dtype="F33")}, 16),
    "a list": raw([1, 2], 0),
    "a number": raw({"a": 5}, 0),
    "no offsets": raw({"a": {"dtype": "F32", "shape": [4]}}, 16),
    "no JSON": (10).to_bytes(8, "little") + b"{" * 10,
    "a length of everything": b"\xff" * 8 + b"{}",
    "nothing": b"",
    "three bytes": b"abc",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(hub, lie):
    hub.models["o/m"] = {"model.safetensors": LIES[lie]}
    with pytest.raises(CheckpointError, match="model.safetensors of o/m"):
        read_headers("o/m")


INDEXES = {
    "out of the folder": {"weight_map": {"a": "../other.safetensors"}},
    "absolute": {"weight_map": {"a": "/etc/passwd"}},
    "missing file": {"weight_map": {"a": "x.safetensors"}},
    "another place": {"weight_map": {"a": "y.safetensors"}},
    "no places": {"weight_map": [1]},
}


@pytest.mark.parametrize("index", INDEXES)
def test_an_index_that_misleads_is_refused(hub, index):
    text = json.dumps(INDEXES[index]).encode()
    hub.models["o/m"] = {"model.safetensors.index.json": text, "y.safetensors": safetensors(SMALL)}
    with pytest.raises(CheckpointError, match="index"):
        read_headers("o/m")
    assert not [path for _, path, _ in hub.requests if "passwd" in path or ".." in path]


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"pytorch_model.bin": b"x"}, "torch files only"),
        ({"unet/model.safetensors": b"", "vae/model.safetensors": b""}, r"in folders \(unet, vae\)"),
        ({"README.md": b""}, "no weights in safetensors"),
    ],
    ids=["torch", "folders", "nothing"],
)
def test_a_model_without_headers(hub, files, text):
    hub.models["o/m"] = files | {"config.json": b'{"model_type": "bert"}'}
    with pytest.raises(NoHeadersError, match=text) as caught:
        read_headers("o/m")
    assert caught.value.config == {"model_type": "bert"}


def in_the_cache(hub, name):
    """Put all files of a model into the cache, as a program that loaded it would."""
    hub.models[name] = {"model.safetensors": safetensors(SMALL), "config.json": b'{"hidden_size": 4}'}
    api = hub_library.HfApi(endpoint=hub.url)
    for file in hub.models[name]:
        api.hf_hub_download(name, file)
    hub.requests.clear()


def test_offline_reads_the_cache_and_asks_nobody(hub):
    in_the_cache(hub, "o/m")
    headers = read_headers("o/m", offline=True)
    assert (len(headers.tensors), headers.config) == (2, {"hidden_size": 4})
    assert "cache" in headers.source
    assert hub.requests == []
    with pytest.raises(CheckpointError, match="not in the cache"):
        read_headers("o/other", offline=True)
    assert hub.requests == []


def test_the_variable_of_the_library_means_offline_too(hub, monkeypatch):
    in_the_cache(hub, "o/m")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert len(read_headers("o/m").tensors) == 2
    with pytest.raises(CheckpointError, match="this run is offline"):
        read_headers("o/other")
    assert hub.requests == []


def test_the_cache_stands_in_for_a_hub_that_is_away(hub, monkeypatch):
    in_the_cache(hub, "o/m")
    away = FakeHub()
    away.close()
    monkeypatch.setenv("HF_ENDPOINT", away.url)
    assert "cache" in read_headers("o/m").source
    with pytest.raises(CheckpointError, match="does not answer"):
        read_headers("o/other")


def test_the_cache_does_not_stand_in_for_a_refusal(hub):
    in_the_cache(hub, "o/m")
    hub.faults["o/m"] = "gated"
    with pytest.raises(CheckpointError, match="gated"):
        read_headers("o/m")


def test_without_the_library_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(NotInstalledError, match=r"pip install accel-bigmodel\[estimate\]"):
        read_headers("bert")
