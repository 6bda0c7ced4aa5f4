"""``accel device-map``: what it plans from headers alone, and what a person sees."""

import json
import math
import re
import subprocess
import sys

import pytest

from accel_bigmodel.commands.device_map import DeviceMap
from accel_bigmodel.drawing.command import limits_of
from accel_bigmodel.drawing.picture import KINDS, Bar, Picture
from accel_bigmodel.drawing.terminal import cells, drawn
from accel_bigmodel.estimate.shapes import ModelHeaders, TensorShape
from accel_bigmodel.planning.header_outline import outline_of_headers
from accel_core.errors import CheckpointError, ConfigError, UnknownNameError

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}


def shapes(hidden=4096, inner=11008, layers=32, words=32000, key_heads=32, head=128, tied=False):
    """Return the tensors of a Llama."""
    found = {"model.embed_tokens.weight": (words, hidden), "model.norm.weight": (hidden,)}
    if not tied:
        found["lm_head.weight"] = (words, hidden)
    for number in range(layers):
        layer = {
            "input_layernorm": (hidden,),
            "mlp.down_proj": (hidden, inner),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "post_attention_layernorm": (hidden,),
            "self_attn.k_proj": (key_heads * head, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.v_proj": (key_heads * head, hidden),
        }
        found |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return found


def write(folder, tensors, config=None, code="F16"):
    """Write headers of ``tensors`` and a hole for their bytes, which takes no space; return the folder."""
    header, place = {}, 0
    # In the order of names, as libraries write them.
    for name, shape in sorted(tensors.items()):
        size = math.prod(shape) * WIDTHS[code]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    folder.mkdir(exist_ok=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def config(hidden=4096, inner=11008, layers=32, words=32000, heads=32, key_heads=32, tied=False):
    """Return the configuration beside `shapes`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "vocab_size": words,
        "tie_word_embeddings": tied,
    }


SMALL = {"hidden": 1024, "inner": 2816, "layers": 12, "words": 32000}
GIB = 2**30


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write(tmp_path_factory.mktemp("models") / "llama", shapes(), config())


def run(capsys, *arguments):
    from argparse import ArgumentParser

    parser = ArgumentParser()
    command = DeviceMap()
    command.configure(parser)
    assert command.run(parser.parse_args([str(each) for each in arguments])) == 0
    return capsys.readouterr().out


def plan(capsys, *arguments):
    return json.loads(run(capsys, *arguments, "--json"))


def test_layers_stay_whole_and_in_the_order_of_the_model(llama, capsys):
    found = plan(capsys, llama, "--max_memory", "0=6GiB", "1=4GiB", "cpu=2GiB")
    placed = found["device_map"]
    layers = [f"model.layers.{number}" for number in range(32)]
    assert list(placed) == ["model.embed_tokens", *layers, "model.norm", "lm_head"]
    order = [0, 1, "cpu", "disk"]
    ranks = [order.index(device) for device in placed.values()]
    assert ranks == sorted(ranks)
    assert set(ranks) == {0, 1, 2, 3}
    layer = 2 * (4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096)
    embedding = 2 * 32000 * 4096
    first = found["devices"][0]
    count = sum(device == 0 for device in placed.values()) - 1
    assert first["weights"] == embedding + count * layer
    assert first["visitors"] == layer
    assert embedding + count * layer <= 6 * GIB - layer < embedding + (count + 1) * layer
    assert found["main_device"] == 0


def test_what_a_person_sees(llama, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = run(
        capsys,
        *(llama, "--max_memory", "0=6GiB", "1=4GiB", "cpu=3GiB"),
        *("--batch_size", "1", "--sequence_length", "2048", "--explain"),
    )
    bars, _, tables = text.partition("DEVICE")
    assert max(map(len, bars.splitlines())) <= 80
    assert re.search(r"^0     █+▓+▒+░+·+  5\.\d GiB of 6\.0 GiB$", bars, re.MULTILINE)
    assert re.search(r"^disk  █+·+ +\d\.\d GiB$", bars, re.MULTILINE)
    assert "█ weights   ▓ caches   ▒ activations   ░ room for offloaded layers   · free" in bars
    assert "1.0 GiB for keys and values" in bars
    assert "visits" in tables
    assert tables.count("Reserved for") == 0


def test_the_cache_is_that_of_the_layers_where_they_lie(llama, capsys):
    wide = ("--max_memory", "0-1=40GiB", "--strategy", "balanced")
    without = plan(capsys, llama, *wide)["devices"]
    found = plan(capsys, llama, *wide, "--batch_size", "4", "--sequence_length", "1024")["devices"]
    # Keys and values in half precision, of 32 layers of 4096 numbers each; the last part also gives scores.
    cache = 2 * 4 * 1024 * 4096 * 2 * 32
    assert [each["caches"] for each in without] == [0, 0]
    assert cache <= sum(each["caches"] for each in found) <= cache + 4 * 1024 * 32000 * 2
    assert found[0]["caches"] == pytest.approx(cache / 2, rel=0.1)
    assert all(each["workspace"] > 0 for each in found)


def test_a_narrower_type_takes_less(llama, capsys):
    full = plan(capsys, llama, "--max_memory", "0=40GiB")["devices"][0]["weights"]
    half = plan(capsys, llama, "--max_memory", "0=40GiB", "--dtype", "int8")["devices"][0]["weights"]
    assert full == 2 * half


def test_other_modules_stay_whole_when_asked(llama, capsys):
    options = ("--max_memory", "0=1.2GiB", "--no_split", "model.layers.*.mlp", "model.layers.*.self_attn")
    names = plan(capsys, llama, *options)["device_map"]
    assert any(name.endswith((".mlp", ".self_attn")) for name in names)
    assert not any(name.endswith("gate_proj") for name in names)


@pytest.mark.parametrize(
    "order",
    [
        ["model.embed", "model.layers.2.a", "model.layers.10.a", "model.norm", "lm_head"],
        ["shared", "encoder.block.0.a", "encoder.block.1.a", "encoder.final_layer_norm", "decoder.block.0.a"],
        [
            *("vision_tower.pre_norm", "vision_tower.layers.0.a", "vision_tower.post_norm"),
            *("multi_modal_projector.linear", "language_model.embed_tokens", "language_model.layers.0.a"),
        ],
        ["electra.embeddings", "electra.encoder.layer.0.a", "discriminator_predictions.dense"],
    ],
)
def test_the_order_is_guessed_from_names(order):
    # Files have them in the order of the alphabet.
    tensors = {f"{name}.weight": TensorShape("F32", (4,)) for name in sorted(order)}
    outline = outline_of_headers(ModelHeaders(tensors, {}, "a test"))
    assert [next(name for name in order if name.startswith(part)) for part in outline.names] == order


def test_tied_weights_of_the_file_lie_together(tmp_path, capsys):
    sizes = {**SMALL, "head": 32}
    folder = write(tmp_path / "tied", shapes(**sizes), config(**SMALL, tied=True))
    found = plan(capsys, folder, "--max_memory", "0=150MB", "cpu=1GB")
    assert found["device_map"]["lm_head"] == found["device_map"]["model.embed_tokens"] == 0
    assert found["device_map"]["model.norm"] == "cpu"
    (row,) = [row for row in found["parts"] if row["first"] == "lm_head"]
    assert row["why"] == "shares a parameter with model.embed_tokens"


def test_limits_as_they_are_written():
    assert limits_of(["cpu=1GiB", "2-3=8GiB", "0=512", "disk=1TB"]) == {
        0: 512,
        2: 8 * GIB,
        3: 8 * GIB,
        "cpu": GIB,
        "disk": 10**12,
    }
    for wrong in (["gpu=1GiB"], ["1-=1GiB"], ["-1=1GiB"], ["0-99999=1GiB"], ["=1GiB"]):
        with pytest.raises(UnknownNameError, match="device"):
            limits_of(wrong)
    for wrong in (["1GiB"], ["0=1G"], ["0=1GiB", "0-1=2GiB"], ["0="]):
        with pytest.raises(ConfigError, match="--max_memory"):
            limits_of(wrong)


def test_what_cannot_be_planned(llama, tmp_path, capsys):
    with pytest.raises(CheckpointError, match="no file or folder"):
        run(capsys, f"{tmp_path}/missing", "--max_memory", "0=1GiB")
    unknown = write(tmp_path / "unknown", {"fc.weight": (4, 4)})
    with pytest.raises(ConfigError, match="hidden_size"):
        run(capsys, unknown, "--max_memory", "0=1GiB", "--batch_size", "2")
    with pytest.raises(CheckpointError, match="write the drawing"):
        run(capsys, llama, "--max_memory", "0=1GiB", "--html", tmp_path / "no" / "such.html")
    assert capsys.readouterr().out == ""


def test_names_cannot_steer_a_terminal_or_a_page(tmp_path, capsys):
    odd = write(tmp_path / "odd", {"a\x1b[31m<b>.weight": (4, 4), "c.weight": (4, 4)})
    text = run(capsys, odd, "--max_memory", "0=1GiB", "--explain", "--html", tmp_path / "page.html")
    assert "\x1b" not in text
    page = (tmp_path / "page.html").read_text()
    assert "<b>." not in page.replace("<b>0</b>", "")
    assert "&lt;b&gt;" in page


def test_a_page_stands_alone(llama, tmp_path, capsys):
    run(capsys, llama, "--max_memory", "0=6GiB", "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "http" not in page
    assert "<script" not in page
    assert page.count('class="row"') == 2


@pytest.mark.leaks("files", reason="matplotlib keeps its fonts open")
def test_a_picture(llama, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run(capsys, llama, "--max_memory", "0=6GiB", "cpu=2GiB", "--png", tmp_path / "map.png")
    image = (tmp_path / "map.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    from matplotlib.image import imread

    pixels = imread(tmp_path / "map.png")
    assert pixels.shape[1] == 1440
    # The colour of weights is in it.
    blue = [int(part, 16) / 255 for part in ("3b", "6f", "b6")]
    assert (abs(pixels[:, :, :3] - blue) < 0.01).all(axis=2).sum() > 10_000


def test_colours_only_where_a_terminal_shows_them(llama):
    code = (
        "import sys; sys.stdout.isatty = lambda: True\n"
        "from accel_bigmodel.drawing.terminal import show\n"
        "from accel_bigmodel.drawing.picture import Bar, Picture\n"
        "show(Picture('t', (Bar('0', (3, 0, 0, 0, 1), '3 B of 4 B', ('a',)),), ()))"
    )

    def printed(**extra):
        environment = {"PATH": "", "FORCE_COLOR": "1", "PYTHONIOENCODING": "utf-8", **extra}
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        ).stdout

    pytest.importorskip("rich")
    assert "\x1b[34m█" in printed()
    assert "\x1b" not in printed(NO_COLOR="1")
    assert "0  ####" in printed(NO_COLOR="1", PYTHONIOENCODING="ascii")


def test_it_runs_without_torch(llama):
    block = (
        "import sys\n"
        "class NoTorch:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'numpy', 'matplotlib'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, NoTorch)\n"
        "from argparse import ArgumentParser\n"
        "from accel_bigmodel.commands.device_map import DeviceMap\n"
        "parser = ArgumentParser(); command = DeviceMap(); command.configure(parser)\n"
        f"options = [{str(llama)!r}, '--max_memory', '0=6GiB', '--sequence_length', '64', '--explain']\n"
        "command.run(parser.parse_args(options))\n"
    )
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "model.layers.0 to" in done.stdout


@pytest.mark.parametrize("room", [8, 9, 40, 57])
@pytest.mark.parametrize(
    "pieces", [(1, 0, 0, 0, 0), (1, 1, 1, 1, 1), (10**12, 1, 1, 1, 1), (0, 0, 0, 0, 0), (3, 0, 5, 0, 7)]
)
def test_bars_are_as_long_as_they_shall_be(pieces, room):
    found = cells(pieces, room)
    assert sum(found) == room
    if any(pieces):
        assert all(bool(cell) == bool(piece) for cell, piece in zip(found, pieces, strict=True))


def test_narrow_terminals_are_not_exceeded():
    holds = tuple(f"model.layers.{number}.with_a_name" for number in range(5))
    picture = Picture(
        "a title " * 20, (Bar("disk", (5, 1, 1, 1, 5), "1.0 GiB of 2.0 GiB", holds),), ("n " * 90,)
    )
    for width in (40, 80, 100):
        for line in drawn(picture, width):
            assert len("".join(text for text, _ in line)) <= max(width, sum(map(len, KINDS)) + 5 * 5)
