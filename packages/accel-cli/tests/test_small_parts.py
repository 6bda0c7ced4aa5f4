"""Interpreter options, devices in /dev, the report of ``accel env``."""

from importlib.util import find_spec

import pytest

from accel_cli import hardware
from accel_cli.hardware import Kind, visible
from accel_cli.interpreter import options


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        ("python accel launch -u", []),
        ("python -u accel -x", ["-u"]),
        ("python -m accel_cli -u", []),
        ("python -um accel_cli launch", ["-u"]),
        (
            "python -X dev -W error -Wignore -OO -bb -m accel_cli",
            ["-X", "dev", "-W", "error", "-Wignore", "-OO", "-bb"],
        ),
        ("python -uXdev -m accel_cli", ["-uXdev"]),
        ("python --check-hash-based-pycs always -I accel", ["--check-hash-based-pycs", "always", "-I"]),
        ("python -Bc code -u", ["-B"]),
        ("python", []),
        ("python -", []),
    ],
)
def test_options_of_the_interpreter(command, kept):
    assert options(command.split()) == kept


@pytest.mark.parametrize(
    ("setting", "count"),
    [
        (None, 4),
        ("", 0),
        ("-1", 0),
        ("0,1", 2),
        ("3", 1),
        ("0,-1,2", 1),
        ("GPU-1a,MIG-2b", 2),
        (" 0 , 1 ", 2),
    ],
)
def test_what_the_vendor_s_variable_leaves(setting, count):
    assert visible(setting, 4) == count


@pytest.fixture
def kinds(tmp_path, monkeypatch):
    """Return a function that makes a machine with these files, as one kind that can be counted or not."""

    def make(names, pattern, *, counted=True, nonzero=""):
        for name, text in names.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        missing = Kind("NPU", str(tmp_path / "none"), r"d\d+", ("NPUS",))
        kind = Kind("GPU", str(tmp_path), pattern, ("GPUS", "OTHER"), nonzero)
        monkeypatch.setattr(hardware, "KINDS", (missing, kind) if counted else (missing,))
        monkeypatch.setattr(hardware, "UNCOUNTED", () if counted else (kind,))

    return make


def test_device_files_are_counted(kinds):
    names = ("nvidia0", "nvidia1", "nvidia12", "nvidiactl", "nvidia-uvm", "nvidia0x")
    kinds(dict.fromkeys(names, ""), r"nvidia\d+")
    assert hardware.accelerators({}) == ("GPU", 3, "GPUS", True, 3)
    assert hardware.accelerators({"GPUS": "0"}).usable == 1
    assert hardware.accelerators({"OTHER": ""}).usable == 0
    assert hardware.accelerators({"GPUS": "0,1,2,3,4"}).usable == 3


def test_processors_in_amd_s_list_do_not_count(kinds):
    kinds({"0/gpu_id": "0\n", "1/gpu_id": "5\n", "2/gpu_id": "9\n", "3/name": ""}, r"\d+", nonzero="gpu_id")
    assert hardware.accelerators({}).usable == 2


def test_what_cannot_be_counted_is_said_so(kinds):
    kinds({"renderD128": ""}, r"renderD\d+", counted=False)
    assert hardware.accelerators({}) == ("GPU", 0, "GPUS", False, 0)


def test_no_accelerator(kinds):
    kinds({}, "x")
    assert hardware.accelerators({}) == hardware.NONE


def test_the_report(folder):
    folder.write("conf.yaml", "mixed_precision: bf16\n")
    done = folder.run(
        "env", "--config_file", "conf.yaml", env={"ACCELERATE_DEBUG_MODE": "1", "SECRET_TOKEN": "s3cret"}
    )
    assert done.returncode == 0, done.stderr
    for text in (
        "accel-cli: 0.",
        "- Python: 3.",
        "mixed_precision: bf16",
        "ACCELERATE_DEBUG_MODE=1",
        "collective backends" if find_spec("torch") else "torch: not installed",
    ):
        assert text in done.stdout
    assert "s3cret" not in done.stdout


def test_the_report_where_torch_cannot_be_imported(folder):
    folder.write("block/torch.py", "raise RuntimeError('broken driver')")
    done = folder.run("env", env={"PYTHONPATH": str(folder.path / "block")})
    assert done.returncode == 0, done.stderr
    assert "cannot be used: RuntimeError: broken driver" in done.stdout
    assert f"no file at {folder.path}" in done.stdout
