"""Interpreter options, devices in /dev, the report of ``accel env``."""

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


def test_device_files_are_counted(tmp_path, monkeypatch):
    for name in ("nvidia0", "nvidia1", "nvidia12", "nvidiactl", "nvidia-uvm", "nvidia0x"):
        (tmp_path / name).write_text("")
    missing = Kind("NPU", str(tmp_path / "none"), r"d\d+", "NPUS")
    monkeypatch.setattr(hardware, "KINDS", (missing, Kind("GPU", str(tmp_path), r"nvidia\d+", "GPUS")))
    assert hardware.accelerators({}) == ("GPU", 3, "GPUS")
    assert hardware.accelerators({"GPUS": "0"}) == ("GPU", 1, "GPUS")
    monkeypatch.setattr(hardware, "KINDS", (missing,))
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
        "collective backends",
    ):
        assert text in done.stdout
    assert "s3cret" not in done.stdout


def test_the_report_where_torch_cannot_be_imported(folder):
    folder.write("block/torch.py", "raise RuntimeError('broken driver')")
    done = folder.run("env", env={"PYTHONPATH": str(folder.path / "block")})
    assert done.returncode == 0, done.stderr
    assert "cannot be used: RuntimeError: broken driver" in done.stdout
    assert f"no file at {folder.path}" in done.stdout
