"""``accel checkpoint``: what it shows and removes, for people, programs and narrow terminals."""

import argparse
import io
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from accel_core.errors import CheckpointError
from accel_core.testing.conformance import CommandConformance
from accel_state import weights
from accel_state.checkpoint import CheckpointStore
from accel_state.commands import show
from accel_state.commands.checkpoint import Checkpoint


class TestCommand(CommandConformance):
    bad_arguments = (
        (),
        ("list",),
        ("ls", "--no-such-option"),
        ("ls", "--verify", "bytes"),
        ("verify",),
        ("rm",),
        ("rm", "--keep", "0", "folder"),
        ("rm", "--keep", "-1", "folder"),
        ("rm", "--kee", "1", "folder"),
        ("diff", "one"),
    )

    @pytest.fixture
    def command(self):
        return Checkpoint()


def save(path, value, step, **more):
    with CheckpointStore().save(path, step=step) as sink:
        sink.tensors("unit/model", {"a": torch.full((1000,), float(value)), "b": torch.zeros(3)} | more)
        sink.json("run", {"value": value, "same": True, "rates": [0.1, value]})
        (sink.directory("engine") / "state.bin").write_bytes(bytes([value]) * 10)


def damage(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four checkpoints: the second is damaged in its bytes, the newest in its manifest."""
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        save(Path(f"checkpoint_{number}"), number, number * 10)
    damage(Path("checkpoint_1/unit/model.safetensors"))
    manifest = Path("checkpoint_3/manifest.json")
    manifest.write_bytes(manifest.read_bytes()[:-9])
    return tmp_path


@pytest.fixture
def accel(capsys, monkeypatch):
    """Run the command; return its exit code and the lines that it printed."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*words, answer=None):
        parser = argparse.ArgumentParser(prog="accel checkpoint")
        Checkpoint().configure(parser)
        if answer is not None:
            typed = io.StringIO(answer)
            typed.isatty = lambda: True
            monkeypatch.setattr("sys.stdin", typed)
        code = Checkpoint().run(parser.parse_args([str(word) for word in words]))
        return code, capsys.readouterr().out.splitlines()

    return run


def left():
    return sorted(each.name for each in Path.cwd().iterdir())


# -- ls ------------------------------------------------------------------------------------------


def test_a_table_of_what_is_there(folder, accel):
    code, lines = accel("ls")
    assert code == 0
    assert lines[0].split() == ["NAME", "STEP", "SIZE", "AGE", "WORLD", "VERIFIED"]
    for number in range(3):
        name, step, count, unit, _, _, world, verified = lines[1 + number].split()
        assert (name, step) == (f"checkpoint_{number}", str(number * 10))
        assert (count, unit, world, verified) == ("4.26", "kB", "1", "sizes")
    damaged = next(place for place, line in enumerate(lines) if "checkpoint_3" in line)
    assert lines[damaged].split() == ["checkpoint_3", "-", "-", "-", "-", "DAMAGED"]
    assert lines[damaged + 1].strip().startswith("manifest.json: The manifest cannot be used: ")


def test_hashes_are_read_when_asked_for(folder, accel):
    _, lines = accel("ls", ".", "--verify", "hashes")
    place = next(place for place, line in enumerate(lines) if line.startswith("checkpoint_1"))
    assert lines[place].endswith("DAMAGED")
    assert lines[place + 1].startswith("    unit/model.safetensors: its xxh3_128")


def test_programs_get_json(folder, accel):
    _, lines = accel("ls", "--json", "--verify", "hashes")
    found = json.loads("\n".join(lines))
    assert (found["directory"], found["latest"]) == (".", "checkpoint_2")
    assert [each["name"] for each in found["checkpoints"]] == [f"checkpoint_{n}" for n in range(4)]
    assert [each["number"] for each in found["checkpoints"]] == [1, 2, 3, 4]
    assert [each["verified"] for each in found["checkpoints"]] == [True, False, True, False]
    good = found["checkpoints"][2]
    assert (good["step"], good["number"], good["world_size"], good["checked"]) == (20, 3, 1, "hashes")
    assert good["size"] == sum(
        file.stat().st_size
        for file in Path("checkpoint_2").rglob("*")
        if file.is_file() and file.name != "manifest.json"
    )
    assert datetime.fromisoformat(good["time"]) < datetime.now(UTC)
    assert found["checkpoints"][3]["step"] is None
    assert found["checkpoints"][1]["faults"][0].startswith("unit/model.safetensors: ")


def test_what_cannot_tell_its_place_comes_first(folder, accel):
    Path("checkpoint_2/manifest.json").write_text("{}")
    _, lines = accel("ls")
    assert lines[1].split() == ["checkpoint_2", "-", "-", "-", "-", "DAMAGED"]
    assert (
        lines[2].strip()
        == "manifest.json: The manifest cannot be used: its first line is not that of a manifest"
    )


def test_no_line_is_longer_than_a_narrow_terminal(folder, accel, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    _, lines = accel("ls")
    assert max(map(len, lines)) <= 30
    assert lines[0] == "checkpoint_0"
    assert lines[1] == "    step 0, size 4.26 kB, age"


def test_one_checkpoint_none_and_nothing(folder, accel):
    code, lines = accel("ls", "checkpoint_2")
    assert (code, len(lines)) == (0, 2)
    Path("run/checkpoints").mkdir(parents=True)
    assert accel("ls", "run") == (0, ["No checkpoints in run"])
    Path("checkpoint_0").rename("run/checkpoints/checkpoint_0")
    assert accel("ls", "run") == (0, ["No checkpoints in run; there are some in run/checkpoints"])
    with pytest.raises(CheckpointError, match="does not exist"):
        accel("ls", "nowhere")


def test_names_cannot_steer_the_terminal(tmp_path, accel):
    save(tmp_path / "a\x1b[31m\nb", 1, 1)
    _, lines = accel("ls", tmp_path)
    assert lines[1].startswith(r"a\x1b[31m\nb ")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (86400 * 400, "400 d")],
)
def test_ages(seconds, text):
    now = datetime.now(UTC)
    assert show.age((now - timedelta(seconds=seconds)).isoformat(), now) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (12_345_678, "12.3 MB"),
        (5 * 10**12, "5 TB"),
    ],
)
def test_sizes(count, text):
    assert show.size(count) == text


@pytest.mark.parametrize("text", [None, "", "yesterday", "2026-01-01T00:00:00"])
def test_an_age_that_nobody_knows(text):
    assert show.age(text) == "-"


# -- verify --------------------------------------------------------------------------------------


def test_verify_names_what_is_damaged(folder, accel):
    code, lines = accel("verify", "checkpoint_0", "checkpoint_1", "checkpoint_1")
    assert code == 1
    assert lines[0].endswith("checkpoint_0: hashes are as saved (3 files, 4.26 kB)")
    assert lines[1].endswith("checkpoint_1: DAMAGED")
    assert lines[2].startswith("    unit/model.safetensors: its xxh3_128")
    assert len(lines) == 3


def test_verify_a_folder_of_checkpoints(folder, accel):
    code, lines = accel("verify", ".", "--json")
    assert code == 1
    assert [each["verified"] for each in json.loads("\n".join(lines))] == [True, False, True, False]
    assert accel("verify", "checkpoint_0", "checkpoint_2", "--verify", "sizes")[0] == 0
    # The right sizes say nothing about the bytes.
    assert accel("verify", "checkpoint_1", "--verify", "sizes")[0] == 0
    with pytest.raises(CheckpointError, match="does not exist"):
        accel("verify", "checkpoint_0", "nowhere")


def test_a_missing_file_is_named(folder, accel):
    Path("checkpoint_0/run.json").unlink()
    _, lines = accel("verify", "checkpoint_0")
    assert lines[1] == "    run.json: is missing"


# -- rm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("YES\n", True), ("n\n", False), ("", False)])
def test_rm_asks(folder, accel, answer, gone):
    code, lines = accel("rm", "checkpoint_0", "checkpoint_1", answer=answer)
    assert code == (0 if gone else 1)
    assert "Remove these 2 checkpoints (8.52 kB)? [y/N] " in lines[3]
    assert ("checkpoint_0" in left()) is not gone
    assert ("checkpoint_1" in left()) is not gone
    assert {"checkpoint_2", "checkpoint_3"} <= set(left())


def test_nobody_to_ask(folder, accel, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(CheckpointError, match="nobody to ask"):
        accel("rm", "checkpoint_0")
    assert "checkpoint_0" in left()
    assert accel("rm", "checkpoint_0", "-y")[0] == 0
    assert "checkpoint_0" not in left()


def test_the_last_good_one_stays(folder, accel):
    with pytest.raises(CheckpointError, match="checkpoint_2 is the last good checkpoint there; nothing was"):
        accel("rm", "checkpoint_0", "checkpoint_2", "--yes")
    assert accel("rm", "checkpoint_2", "--yes")[0] == 0
    # checkpoint_1 has the right sizes, but not the right bytes.
    with pytest.raises(CheckpointError, match="checkpoint_0 is the last good checkpoint"):
        accel("rm", "checkpoint_0", "--yes")
    assert accel("rm", "checkpoint_1", "checkpoint_3", "--yes")[0] == 0, "what is damaged may go"
    assert accel("rm", "checkpoint_0", "--yes", "--force")[0] == 0
    assert left() == []


def test_keep_the_newest(folder, accel):
    code, lines = accel("rm", "--keep", "1", ".", "--dry-run")
    assert (code, len(lines), len(left())) == (0, 3, 4)
    accel("rm", "--keep", "1", ".", "--yes")
    # It is newer than the one that is kept, so only who names it removes it.
    assert left() == ["checkpoint_2", "checkpoint_3"]
    assert accel("rm", "--keep", "1", ".", "--yes") == (0, ["Nothing to remove"])
    with pytest.raises(CheckpointError, match="There is no folder nowhere"):
        accel("rm", "--keep", "1", "nowhere")


def test_only_checkpoints_are_removed(folder, accel):
    Path("thesis").mkdir()
    Path("thesis/text.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="is not a committed checkpoint"):
        accel("rm", "checkpoint_0", "thesis", "--yes", "--force")
    assert {"thesis", "checkpoint_0"} < set(left())


# -- diff ----------------------------------------------------------------------------------------


def test_diff_shows_what_changed(folder, accel):
    save(Path("other"), 5, 7, new=torch.zeros(2))
    with CheckpointStore().save("first", step=3) as sink:
        sink.tensors("unit/model", {"a": torch.zeros(1000), "b": torch.zeros(3, 1), "old": torch.ones(1)})
        sink.json("run", {"value": 5, "same": True, "rates": [0.1], "gone": {"x": 1}})
    code, lines = accel("diff", "first", "other")
    assert code == 1
    assert lines == [
        "--- first (step 3, saved by 1)",
        "+++ other (step 7, saved by 1)",
        "- run: gone.x",
        "- unit/model/old",
        "+ engine: engine/state.bin",
        "+ run: rates.1",
        "+ unit/model/new",
        "~ unit/model/a: 1,000 of 1,000 values differ, by at most 5",
        "~ unit/model/b: float32 [3, 1] -> float32 [3]",
        "7 differ, 3 are the same",
    ]
    code, lines = accel("diff", "first", "other", "--json")
    found = json.loads("\n".join(lines))
    assert (code, found["same"], len(found["removed"]), len(found["added"])) == (1, 3, 2, 3)
    assert found["changed"]["unit/model/a"] == {"values": 1000, "of": 1000, "max_abs": 5.0}


def test_equal_checkpoints(folder, accel):
    save(Path("again"), 2, 99)
    code, lines = accel("diff", "checkpoint_2", "again")
    assert (code, lines[-1]) == (0, "0 differ, 7 are the same")


@pytest.mark.parametrize(
    ("one", "other", "count", "most"),
    [
        (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.5, 2.0]), 2, 1.0),
        (torch.tensor([torch.nan, 1.0]), torch.tensor([torch.nan, 1.0]), 0, None),
        (torch.tensor([torch.nan, 1.0]), torch.tensor([0.0, 1.0]), 1, "nan"),
        (torch.tensor([torch.inf]), torch.tensor([-torch.inf]), 1, "inf"),
        (torch.tensor([0.0]), torch.tensor([-0.0]), 1, 0.0),
        (torch.tensor([True, False]), torch.tensor([True, True]), 1, 1.0),
        (torch.tensor([2**60]), torch.tensor([0]), 1, float(2**60)),
        (torch.tensor([1 + 1j]), torch.tensor([1 - 2j]), 1, 3.0),
        (torch.ones(2, dtype=torch.float8_e5m2), torch.zeros(2, dtype=torch.float8_e5m2), 2, 1.0),
        (torch.tensor(1.0), torch.tensor(4.0), 1, 3.0),
        (torch.zeros(0, 3), torch.zeros(0, 3), 0, None),
        (torch.zeros(3, 1 << 19).t(), torch.zeros(3, 1 << 19).t() + torch.eye(1 << 19, 3), 3, 1.0),
    ],
)
def test_how_much_tensors_differ(tmp_path, accel, one, other, count, most):
    for name, tensor in (("one", one), ("other", other)):
        weights.save({"a": tensor}, tmp_path / name)
    code, lines = accel("diff", tmp_path / "one", tmp_path / "other", "--json")
    change = json.loads("\n".join(lines))["changed"].get("a")
    expected = {"values": count, "of": one.numel(), "max_abs": most} if count else None
    assert (code, change) == (int(count > 0), expected)


def test_a_damaged_checkpoint_is_not_compared(folder, accel):
    with pytest.raises(CheckpointError, match="checkpoint_1 is damaged"):
        accel("diff", "checkpoint_0", "checkpoint_1")
    with pytest.raises(CheckpointError, match="does not exist"):
        accel("diff", "checkpoint_0", "nowhere")


# -- behind URIs ---------------------------------------------------------------------------------


@pytest.fixture
def bucket():
    """Three checkpoints in memory; a file of the newest is longer than it was."""
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("tenacity")
    from accel_state.checkpoint.remote import RemoteStore

    memory = fsspec.filesystem("memory")
    store = RemoteStore()
    for number in range(3):
        with store.save(f"memory://bucket/run/checkpoint_{number}", step=number * 10) as sink:
            sink.tensors("unit/model", {"a": torch.full((1000,), float(number))})
            sink.json("run", {"value": number})
    (file,) = (path for path in memory.find("/bucket/run/checkpoint_2") if path.endswith("run.json"))
    memory.pipe(file, b"{}")
    yield "memory://bucket/run"
    memory.rm("/bucket", recursive=True)


def test_checkpoints_behind_uris_are_listed_and_verified(bucket, accel):
    code, lines = accel("ls", bucket)
    assert code == 0
    assert [line.split()[0] for line in lines[:4]] == ["NAME", *(f"checkpoint_{n}" for n in range(3))]
    assert (lines[2].split()[-1], lines[3].split()[-1]) == ("sizes", "DAMAGED")
    assert "run.json: has 2 bytes instead of 12" in lines[4]
    found = json.loads("\n".join(accel("ls", bucket, "--json")[1]))
    assert (found["latest"], found["checkpoints"][1]["step"]) == ("checkpoint_1", 10)
    code, lines = accel("verify", f"{bucket}/checkpoint_0", f"{bucket}/checkpoint_1")
    assert (code, len(lines)) == (0, 2)
    assert lines[0].startswith(f"{bucket}/checkpoint_0: hashes are as saved (2 files, ")
    assert accel("verify", bucket)[0] == 1
    assert accel("ls", "memory://bucket/other") == (0, ["No checkpoints in memory://bucket/other"])
    with pytest.raises(CheckpointError, match="memory://bucket/run/nowhere does not exist"):
        accel("rm", f"{bucket}/nowhere", "-y")


def test_checkpoints_behind_uris_are_compared_and_removed(bucket, accel, tmp_path):
    code, lines = accel("diff", f"{bucket}/checkpoint_0", f"{bucket}/checkpoint_1")
    assert code == 1
    assert lines[0] == f"--- {bucket}/checkpoint_0 (step 0, saved by 1)"
    assert lines[2:] == [
        "~ run: value: 0 -> 1",
        "~ unit/model/a: 1,000 of 1,000 values differ, by at most 1",
        "2 differ, 0 are the same",
    ]
    with pytest.raises(CheckpointError, match="checkpoint_1 is the last good"):
        accel("rm", f"{bucket}/checkpoint_0", f"{bucket}/checkpoint_1", "-y")
    assert accel("rm", "--keep", "1", bucket, "-y")[0] == 0
    assert [line.split()[0] for line in accel("ls", bucket)[1][1:3]] == ["checkpoint_1", "checkpoint_2"]


# -- start ---------------------------------------------------------------------------------------


def test_looking_verifying_and_removing_do_without_torch(folder):
    program = """
import argparse, sys
from accel_state.commands.checkpoint import Checkpoint
lines = ["ls", "ls --json", "verify .", "rm checkpoint_0 -y", "rm --keep=1 . -y"]
for words in map(str.split, lines):
    parser = argparse.ArgumentParser()
    Checkpoint().configure(parser)
    Checkpoint().run(parser.parse_args(words))
print({"torch", "numpy"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.splitlines()[-1:] == ["set()"], done.stderr
    assert left() == ["checkpoint_2", "checkpoint_3"]
