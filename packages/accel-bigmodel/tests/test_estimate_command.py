"""``accel estimate-memory``: what a person sees, what programs get, and that neither torch nor code runs."""

import argparse
import json
import subprocess
import sys

import pytest
import torch

from accel_bigmodel.commands import estimate_memory
from accel_bigmodel.commands.estimate_memory import EstimateMemory
from accel_bigmodel.estimate import show
from accel_bigmodel.estimate.bits import WANTED
from accel_bigmodel.estimate.optimizers import STATES
from accel_core.errors import CheckpointError, ConfigError, NotInstalledError
from accel_core.testing.conformance import CommandConformance

safetensors = pytest.importorskip("safetensors.torch")


class TestCommand(CommandConformance):
    bad_arguments = (
        (),
        ("model", "--dtypes", "float33"),
        ("model", "--library_name", "keras"),
        ("model", "--batch_size", "0"),
        ("model", "--sequence_length", "many"),
        ("model", "--optimizer", "adamm"),
        ("model", "--zero_stage", "4"),
        ("model", "--shards", "-2"),
        ("model", "another"),
    )

    @pytest.fixture
    def command(self):
        return EstimateMemory()


CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": 100,
}


@pytest.fixture
def folder(tmp_path):
    tensors = {
        "model.embed_tokens.weight": torch.zeros(100, 64),
        "model.layers.0.mlp.weight": torch.zeros(64, 256),
        "model.layers.1.mlp.weight": torch.zeros(64, 256),
    }
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def accel(capsys, monkeypatch):
    """Run the command; return its exit code and what it printed."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words):
        parser = argparse.ArgumentParser(prog="accel estimate-memory")
        EstimateMemory().configure(parser)
        code = EstimateMemory().run(parser.parse_args([str(word) for word in words]))
        return code, capsys.readouterr()

    return run


def test_the_documented_table(accel, folder):
    code, printed = accel(folder, "--dtypes", "float32", "int4")
    name = str(folder)
    assert code == 0
    assert printed.out.splitlines()[:6] == [
        f"Memory Usage for loading `{name}`:",
        "",
        "| dtype   | Largest Layer | Total Size | Training using Adam |",
        "|---------|---------------|------------|---------------------|",
        "| float32 | 64.0 KB       | 153.0 KB   | 612.0 KB            |",
        "| int4    | 8.0 KB        | 19.12 KB   | N/A                 |",
    ]
    assert "Largest layer: model.layers.0, model.layers.1." in printed.out
    assert "39,168, stored as 153.0 KB F32" in printed.out
    assert printed.err == ""


def test_all_types_are_shown_unless_named(accel, folder):
    _, printed = accel(folder)
    assert [line.split()[1] for line in printed.out.splitlines()[4:10]] == list(WANTED)


def test_everything_fits_a_terminal(accel, folder):
    _, printed = accel(
        folder, "--batch_size", 64, "--sequence_length", 8192, "--shards", 8, "--optimizer", "sgd_momentum"
    )
    lines = printed.out.splitlines()
    assert "Inference, 64 x 8,192 tokens, on each of 8 devices:" in lines
    assert "Training using SGD with momentum, 64 x 8,192 tokens, on each of 8 devices:" in lines
    # The folder that this test was given is one word, however long it is.
    assert all(len(line) <= 80 for line in lines if str(folder) not in line)


def test_a_narrow_terminal_gets_a_list(accel, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    _, printed = accel(folder, "--dtypes", "float16")
    assert "  Training using Adam: 306.0 KB" in printed.out.splitlines()
    assert "|" not in printed.out


def test_json_has_bytes_and_what_was_asked(accel, folder):
    words = ("--dtypes", "bfloat16", "--sequence_length", 128, "--optimizer", "adamw", "--json")
    _, printed = accel(folder, *words)
    facts = json.loads(printed.out)
    assert facts["parameters"] == 39168
    assert facts["loading"] == [
        {"dtype": "bfloat16", "largest_layer": 32768, "total": 78336, "training": 313344}
    ]
    (inference,), (training,) = facts["inference"], facts["training"]
    parts = ("weights", "gathered", "cache", "activations")
    assert inference["peak"] == sum(inference[part] for part in parts)
    assert inference["cache"] == 2 * 128 * 64 * 2 * 2
    assert training["optimizer"] == 2 * 78336
    assert facts["options"]["optimizer"] == "adamw"
    assert facts["options"]["sequence_length"] == 128


def test_dashes_are_underscores(accel, folder):
    assert accel(folder, "--batch-size", 2, "--sequence-length", 8)[0] == 0


def test_wrong_options_are_told_before_anything_is_read(accel):
    with pytest.raises(ConfigError, match="sequence_length"):
        accel("no-such-model", "--batch_size", 2)


def test_the_parser_offers_what_there_is():
    # They are repeated there, so that --help imports nothing.
    assert tuple(WANTED) == estimate_memory._DTYPES
    assert tuple(sorted(STATES)) == estimate_memory._OPTIMIZERS
    assert set(show._TITLES) == set(STATES)


def test_remote_code_is_said_loudly_and_not_run(accel, folder):
    (folder / "modeling.py").write_text("raise SystemExit('this ran')")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"auto_map": {"AutoModel": "modeling.Model"}}))
    _, printed = accel(folder, "--trust_remote_code")
    assert "WARNING: --trust_remote_code" in printed.err
    assert "was not needed" in printed.err
    assert accel(folder)[1].err == ""


def test_a_configuration_alone_needs_the_library(accel, folder, monkeypatch):
    (folder / "model.safetensors").unlink()
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NotInstalledError, match="pip install transformers"):
        accel(folder)
    with pytest.raises(NotInstalledError, match="pip install timm"):
        accel(folder, "--library_name", "timm")


def test_a_folder_with_nothing(accel, tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights"):
        accel(tmp_path)


WITHOUT_TORCH = """
import sys
class NoTorch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "timm", "huggingface_hub", "numpy"}:
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, NoTorch)
import argparse
from accel_bigmodel.commands.estimate_memory import EstimateMemory
parser = argparse.ArgumentParser()
EstimateMemory().configure(parser)
sys.exit(EstimateMemory().run(parser.parse_args()))
"""


def test_a_local_model_needs_no_library_at_all(folder):
    words = [sys.executable, "-c", WITHOUT_TORCH, str(folder), "--sequence_length", "16"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "KV Cache" in done.stdout


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KB"),
        (89_075_712, "84.95 MB"),
        (9 * 2**20, "9.0 MB"),
        (4 * 433_245_184, "1.61 GB"),
        (2**20 - 1, "1.0 MB"),
        (3 * 2**50, "3.0 PB"),
    ],
)
def test_sizes_as_the_documents_write_them(count, text):
    assert show.size(count) == text


def test_names_cannot_steer_a_terminal():
    assert show.plain("a\x1b[31mb\n") == "a\\x1b[31mb\\n"
