"""Headers of models on this machine: what is found, counted once, and refused."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from accel_bigmodel.estimate.bits import BITS
from accel_bigmodel.estimate.headers import may_be_on_the_hub, read_headers
from accel_bigmodel.estimate.shapes import ModelHeaders, NoHeadersError, TensorShape
from accel_bigmodel.estimate.tied import without_ties
from accel_core.errors import CheckpointError

safetensors = pytest.importorskip("safetensors.torch")


def write(folder, tensors, name="model.safetensors", config=None):
    folder.mkdir(exist_ok=True)
    safetensors.save_file(tensors, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def sharded(folder):
    write(folder, {"a.weight": torch.zeros(3, 2)}, "model-00001-of-00002.safetensors", {"hidden_size": 8})
    write(folder, {"b.weight": torch.zeros(5, dtype=torch.bfloat16)}, "model-00002-of-00002.safetensors")
    places = {
        "a.weight": "model-00001-of-00002.safetensors",
        "b.weight": "model-00002-of-00002.safetensors",
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_a_folder_a_file_and_an_index_say_the_same(tmp_path):
    folder = sharded(tmp_path / "model")
    headers = read_headers(folder)
    assert headers.tensors == {"a.weight": TensorShape("F32", (3, 2)), "b.weight": TensorShape("BF16", (5,))}
    assert headers.bytes == 34
    assert headers.config == {"hidden_size": 8}
    assert read_headers(folder / "model.safetensors.index.json").tensors == headers.tensors
    first = read_headers(folder / "model-00001-of-00002.safetensors")
    assert list(first.tensors) == ["a.weight"]


def test_a_link_in_a_cache_is_followed(tmp_path):
    blob = write(tmp_path / "blobs", {"a": torch.zeros(3)}) / "model.safetensors"
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(blob)
    assert read_headers(folder).bytes == 12


CODES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
}


@pytest.mark.parametrize("dtype", CODES)
def test_safetensors_and_torch_files_agree(tmp_path, dtype):
    tensors = {"x.weight": torch.zeros(4, 3, dtype=dtype), "y": torch.zeros((), dtype=dtype)}
    write(tmp_path, tensors)
    torch.save(tensors, tmp_path / "weights.bin")
    safe, pickled = (read_headers(tmp_path / name) for name in ("model.safetensors", "weights.bin"))
    assert safe.tensors == pickled.tensors
    assert safe.tensors["x.weight"].code == CODES[dtype]
    assert safe.bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert "torch" in pickled.source


def test_every_code_of_a_tensor_has_its_width():
    from accel_bigmodel.estimate.pickled import CODES as PICKLED

    for dtype, code in PICKLED.items():
        assert dtype.itemsize * 8 == BITS[code], dtype


def test_memory_that_a_torch_file_shares_is_counted_once(tmp_path):
    embedding = torch.zeros(6, 4)
    torch.save({"in.weight": embedding, "out.weight": embedding, "half": embedding[:3]}, tmp_path / "m.bin")
    headers = read_headers(tmp_path / "m.bin")
    assert headers.aliases == {"out.weight": "in.weight"}
    assert list(headers.tensors) == ["in.weight", "half"]


TIED = {"model.embed_tokens.weight": torch.zeros(6, 4), "lm_head.weight": torch.ones(6, 4)}


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"tie_word_embeddings": True}, 1),
        ({"text_config": {"tie_word_embeddings": True}}, 1),
        ({"tie_word_embeddings": False}, 2),
        # Nobody says that they are tied, and the file has both.
        ({}, 2),
        (None, 2),
    ],
    ids=["tied", "tied inside", "not tied", "silent", "no configuration"],
)
def test_what_the_configuration_ties_is_counted_once(tmp_path, config, count):
    headers = read_headers(write(tmp_path, TIED, config=config))
    assert len(headers.tensors) == count
    assert headers.aliases == ({"lm_head.weight": "model.embed_tokens.weight"} if count == 1 else {})


def test_only_equal_shapes_are_tied():
    tensors = {
        "shared.weight": TensorShape("F32", (6, 4)),
        "encoder.embed_tokens.weight": TensorShape("F32", (6, 4)),
        "decoder.embed_tokens.weight": TensorShape("F32", (6, 4)),
        "lm_head.weight": TensorShape("F32", (7, 4)),
    }
    headers = without_ties(ModelHeaders(tensors, {"tie_word_embeddings": True}, "here"))
    assert list(headers.tensors) == ["shared.weight", "lm_head.weight"]


def test_one_file_under_a_name_of_its_own_is_enough(tmp_path):
    write(tmp_path, {"a": torch.zeros(3)}, "diffusion_pytorch_model.safetensors")
    assert read_headers(tmp_path).bytes == 12


def test_a_shard_alone_is_not_the_model(tmp_path):
    folder = sharded(tmp_path / "model")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002.safetensors"):
        read_headers(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="no index"):
        read_headers(folder)


def test_a_configuration_without_weights_is_kept_for_a_library(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(NoHeadersError, match="holds no weights") as caught:
        read_headers(tmp_path)
    assert caught.value.config == {"model_type": "bert"}


def test_nothing_at_all(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_headers(tmp_path)
    with pytest.raises(CheckpointError, match="There is no file or folder"):
        read_headers(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text", ["[1]", "{", '{"a": 1, "a": 2}', "\ud800"], ids=["a list", "cut", "twice", "no text"]
)
def test_a_broken_configuration_is_said(tmp_path, text):
    write(tmp_path, {"a": torch.zeros(1)})
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match="config"):
        read_headers(tmp_path)


def test_a_header_that_lies_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1000000], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="'a' is F32 of shape"):
        read_headers(tmp_path)


class Anything:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_torch_file_runs_nothing(tmp_path, capsys):
    torch.save({"a": Anything()}, tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match="more than tensors"):
        read_headers(tmp_path / "m.bin")
    assert capsys.readouterr().out == ""


def test_a_torch_file_of_something_else(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_headers(tmp_path / "m.bin")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("bert-base-cased", True),
        ("google-bert/bert-base-cased", True),
        ("a/b/c", False),
        ("../secret", False),
        ("/etc/passwd", False),
        ("https://elsewhere", False),
        ("folder/model.safetensors", False),
        ("", False),
        ("a b", False),
        ("-x", False),
    ],
)
def test_what_can_be_a_name_on_the_hub(name, answer):
    assert may_be_on_the_hub(name) is answer


@given(st.lists(st.integers(0, 70), max_size=4), st.sampled_from(sorted(BITS)))
def test_bytes_of_a_tensor(shape, code):
    tensor = TensorShape(code, tuple(shape))
    assert tensor.elements == math.prod(shape)
    assert tensor.bytes == math.ceil(math.prod(shape) * BITS[code] / 8)


def test_a_saved_module_counts_what_torch_counts(tmp_path):
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Embedding(11, 3).half())
    write(tmp_path, model.state_dict())
    assert read_headers(tmp_path).bytes == sum(tensor.nbytes for tensor in model.state_dict().values())


def test_a_file_of_torch_without_tensors_by_name_is_no_model_of_nothing(tmp_path):
    model = nn.Linear(2, 2)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "pytorch_model.bin")
    assert read_headers(tmp_path).bytes == 24
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no tensors by name, only \['model', 'epoch'\]"):
        read_headers(tmp_path)
