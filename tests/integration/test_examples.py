"""The examples in docs/examples run as a user would run them, and do what they say."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def launch(folder: Path, *options: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run ``accel launch`` in ``folder``; return the finished process."""
    command = [sys.executable, "-m", "accel_cli", "launch", "--cpu", *options, str(EXAMPLES / script)]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "COLUMNS": "100"},
    )


@pytest.mark.timeout(260)
@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (("--num_processes", "2"), "2 process(es) on cpu, mixed precision no"),
        ((), "1 process(es) on cpu, mixed precision no"),
        (("--mixed_precision", "bf16"), "1 process(es) on cpu, mixed precision bf16"),
    ],
    ids=["two processes", "one process", "bf16"],
)
def test_digits(options: tuple[str, ...], shown: str, tmp_path: Path) -> None:
    done = launch(tmp_path, *options, script="digits.py")
    assert done.returncode == 0, done.stderr
    result = re.search(r"(.*): ([\d.]+)% of (\d+) test images", done.stdout)
    assert result is not None, done.stdout
    assert result[1] == shown
    assert float(result[2]) >= 97.0
    assert result[3] == "360"
    assert done.stdout.count("Handwritten digits") == 1, "the table is printed by one process only"
    assert len(re.findall(r"│ +\d+ │", done.stdout)) == 16
    bars = [part for part in done.stderr.split("\r") if "100%" in part]
    assert bars, "the progress bar reaches its end"
    picture = (tmp_path / "digits.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert width > 600
    assert height > 300
