"""What every implementation of `CheckpointIO` must do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from accel_core.errors import CheckpointError
from accel_core.protocols import CheckpointIO

from .base import Conformance
from .checks import same


class CheckpointIOConformance(Conformance):
    """Override ``store`` with one whose paths are folders of the file system, on one process."""

    @pytest.fixture
    def store(self) -> CheckpointIO:
        """Return the store."""
        raise NotImplementedError

    def test_it_is_a_store(self, store: CheckpointIO) -> None:
        """Every method is there."""
        assert isinstance(store, CheckpointIO)

    def test_round_trip(self, store: CheckpointIO, tmp_path: Path) -> None:
        """Tensors of every kind, values and folders come back as they were."""
        values = tensors()
        sink = store.begin(str(tmp_path / "one"))
        sink.tensors("model", values)
        sink.json("meta", META)
        (sink.directory("own") / "file.txt").write_text("mine", encoding="utf-8")
        store.commit(sink)
        source = store.open(str(tmp_path / "one"))
        assert {"model", "meta", "own"} <= set(source.names())
        loaded = source.tensors("model")
        assert set(loaded) == set(values)
        for name, value in values.items():
            same(loaded[name], value, name)
        assert source.json("meta") == META
        assert (source.directory("own") / "file.txt").read_text(encoding="utf-8") == "mine"

    def test_unknown_names_are_errors(self, store: CheckpointIO, tmp_path: Path) -> None:
        """What is not stored is named."""
        source = store.open(self._saved(store, tmp_path / "one"))
        with pytest.raises(CheckpointError, match="nothing-of-this"):
            source.json("nothing-of-this")
        with pytest.raises(CheckpointError, match="nothing-of-this"):
            source.tensors("nothing-of-this")

    def test_uncommitted_is_unseen(self, store: CheckpointIO, tmp_path: Path) -> None:
        """Readers see a checkpoint when it is committed, not before."""
        sink = store.begin(str(tmp_path / "one"))
        sink.json("meta", META)
        assert store.listed(str(tmp_path)) == []
        assert store.latest(str(tmp_path)) is None
        with pytest.raises(CheckpointError):
            store.open(str(tmp_path / "one"))
        store.commit(sink)
        assert len(store.listed(str(tmp_path))) == 1

    def test_abort_leaves_nothing(self, store: CheckpointIO, tmp_path: Path) -> None:
        """An aborted checkpoint is gone, and its path can be used again."""
        sink = store.begin(str(tmp_path / "one"))
        sink.tensors("model", {"a": torch.ones(2)})
        store.abort(sink)
        assert list(tmp_path.iterdir()) == []
        self._saved(store, tmp_path / "one")

    def test_listed_and_latest(self, store: CheckpointIO, tmp_path: Path) -> None:
        """Oldest first, in the order of commits and not of names; removing takes one away."""
        saved = [self._saved(store, tmp_path / name) for name in ("b", "a", "c")]
        assert [Path(path).name for path in store.listed(str(tmp_path))] == ["b", "a", "c"]
        latest = store.latest(str(tmp_path))
        assert latest is not None
        assert Path(latest).name == "c"
        store.remove(saved[2])
        assert [Path(path).name for path in store.listed(str(tmp_path))] == ["b", "a"]
        assert not (tmp_path / "c").exists()

    def test_missing_checkpoint_is_an_error(self, store: CheckpointIO, tmp_path: Path) -> None:
        """The path is named."""
        with pytest.raises(CheckpointError, match="nowhere"):
            store.open(str(tmp_path / "nowhere"))
        assert store.latest(str(tmp_path)) is None

    def test_damage_is_found_in_every_file(self, store: CheckpointIO, tmp_path: Path) -> None:
        """One flipped bit in any file makes open fail, and latest fall back to the one before."""
        self._saved(store, tmp_path / "good")
        bad = self._saved(store, tmp_path / "bad")
        for file in flipped(Path(bad)):
            with pytest.raises(CheckpointError):
                store.open(bad)
            latest = store.latest(str(tmp_path))
            assert latest is not None, file
            assert Path(latest).name == "good", file
        store.open(bad)

    def test_a_lost_file_is_found(self, store: CheckpointIO, tmp_path: Path) -> None:
        """A checkpoint that lacks a file does not verify."""
        path = self._saved(store, tmp_path / "one")
        for file in [file for file in Path(path).rglob("*") if file.is_file()]:
            data = file.read_bytes()
            file.unlink()
            with pytest.raises(CheckpointError):
                store.open(path)
            file.write_bytes(data)
        store.open(path)

    def _saved(self, store: CheckpointIO, path: Path) -> str:
        sink = store.begin(str(path))
        sink.tensors("model", tensors())
        sink.json("meta", META)
        store.commit(sink)
        return str(path)


META = {"step": 3, "names": ["a", "ü"], "rate": 0.1, "none": None, "flag": True, "big": 2**60}


def tensors() -> dict[str, torch.Tensor]:
    """Return tensors of many dtypes and shapes, two of which share their memory."""
    base = torch.arange(6.0).reshape(2, 3)
    return {
        "float": base,
        "tied": base,
        "double": base.double() / 3,
        "bfloat16": base.bfloat16(),
        "bool": base > 2,
        "int": torch.tensor(2**40),
        "empty": torch.zeros(0, 3),
        "view": base.t(),
    }


def flipped(path: Path) -> Iterator[Path]:
    """Flip one bit in the middle of each file in turn, and put it back."""
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        data = file.read_bytes()
        if not data:
            continue
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        yield file
        file.write_bytes(data)


__all__ = ["CheckpointIOConformance"]
