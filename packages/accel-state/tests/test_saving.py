"""One file per job or per machine, whole or not at all, and read back without running code."""

import io
import sys
from pathlib import Path

import pytest
import torch

from accel_core.errors import CapabilityError, CheckpointError, DataError
from accel_state import notebooks, process
from accel_state.saving import load, save

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2, dtype=torch.bfloat16)}


SHARED = torch.ones(3)


@pytest.fixture(autouse=True)
def anew():
    yield
    process.reset()


def same(one, other):
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


class Trap:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("trap"),))


@pytest.mark.parametrize("kind", [str, Path])
def test_what_was_saved_is_loaded(tmp_path, kind):
    path = kind(tmp_path / "state.bin")
    save(STATE, path)
    assert same(load(path), STATE)
    assert load(path, map_location="meta")["weight"].is_meta
    assert list(tmp_path.iterdir()) == [Path(path)]
    # As any other file the user makes.
    (tmp_path / "plain").touch()
    assert Path(path).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_open_files_too():
    buffer = io.BytesIO()
    save(STATE, buffer)
    buffer.seek(0)
    assert same(load(buffer), STATE)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    state = {**STATE, "turned": torch.arange(6.0).reshape(2, 3).t()}
    save(state, path, safe_serialization=True)
    assert same(safetensors.load_file(path), state)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([torch.ones(1)], "a mapping of names to tensors, not list"),
        ({"a": torch.ones(1), "step": 3}, "1 values are none .'step': int"),
        ({1: torch.ones(1)}, "a mapping of names to tensors"),
        ({"a": SHARED, "b": SHARED, "c": SHARED[1:]}, "share memory .*: a, b, c"),
    ],
    ids=["list", "number", "name", "tied"],
)
def test_what_safetensors_cannot_hold_is_named(tmp_path, value, text):
    pytest.importorskip("safetensors.torch")
    with pytest.raises(DataError, match=text):
        save(value, tmp_path / "x.safetensors", safe_serialization=True)
    assert not list(tmp_path.iterdir())


def test_a_file_may_not_run_code_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Trap(), "state.bin")
    with pytest.raises(CheckpointError, match="no file of tensors and plain containers") as caught:
        load("state.bin")
    assert "weights_only=False" in caught.value.fix
    assert not Path("trap").exists()
    load("state.bin", weights_only=False)
    assert Path("trap").exists()


def test_files_that_cannot_be_read_or_written_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no file .*gone\.bin"):
        load(tmp_path / "gone.bin")
    save(STATE, tmp_path / "half.bin")
    whole = (tmp_path / "half.bin").read_bytes()
    (tmp_path / "half.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"half\.bin"):
        load(tmp_path / "half.bin")
    (tmp_path / "empty.bin").touch()
    with pytest.raises(CheckpointError, match=r"empty\.bin"):
        load(tmp_path / "empty.bin")
    with pytest.raises(CheckpointError, match="cannot be written: No such file"):
        save(STATE, tmp_path / "nowhere" / "state.bin")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "state.bin"
    save(STATE, path)
    with pytest.raises(Exception, match="pickle"):
        save({"function": lambda: None}, path)
    assert same(load(path), STATE)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.world(4)
def test_one_process_writes(pool, world, tmp_path):
    def run():
        place = process.start().topology
        save(place.rank, tmp_path / f"one.{place.rank}")
        save(place.rank, tmp_path / f"each.{place.rank}", save_on_each_node=True)

    # Two machines with two processes each.
    env = [
        {"LOCAL_RANK": str(rank % 2), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": str(rank // 2)}
        for rank in range(4)
    ]
    pool.run(world, run, env=env)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["each.0", "each.2", "one.0"]


def test_xla_is_installed_in_colab_only(monkeypatch):
    with pytest.raises(CapabilityError, match="works in Google Colab only"):
        notebooks.install_xla()
    release = ".".join(torch.__version__.split(".")[:2])
    assert notebooks.command(upgrade=False)[1:] == ["-m", "pip", "install", f"torch_xla[tpu]=={release}.*"]
    assert notebooks.command(upgrade=True)[-3:] == ["--upgrade", "torch", "torch_xla[tpu]"]
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    monkeypatch.setattr(
        notebooks, "command", lambda upgrade: [sys.executable, "-c", "import sys; sys.exit('no')"]
    )
    with pytest.raises(CapabilityError, match="pip could not install torch_xla: no"):
        notebooks.install_xla()
    monkeypatch.setattr(notebooks, "command", lambda upgrade: [sys.executable, "-c", ""])
    notebooks.install_xla(upgrade=True)
