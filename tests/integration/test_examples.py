"""The examples in docs/examples run as a user would run them, and do what they say."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def launch(
    folder: Path, *options: str, script: str, words: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run ``accel launch`` in ``folder``; return the finished process."""
    command = [sys.executable, "-m", "accel_cli", "launch", "--cpu", *options, str(EXAMPLES / script), *words]
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


def rows(printed: str) -> list[list[str]]:
    """Return the cells of a table's body, row by row."""
    return [
        [cell.strip() for cell in line.strip("│ ").split("│")] for line in printed.splitlines() if "│" in line
    ]


@pytest.mark.timeout(260)
def test_gan(tmp_path: Path) -> None:
    done = launch(tmp_path, "--num_processes", "2", script="gan.py", words=("--epochs", "5"))
    assert done.returncode == 0, done.stderr
    before, after = rows(done.stdout)
    assert (before[0], after[0]) == ("0", "5")
    # Five epochs: the generator has left grey and noise behind.
    assert float(after[3]) < 0.85 * float(before[3])
    drawn = [line for line in done.stdout.splitlines() if re.fullmatch(r"[ .:\-=+*#%@]{50,}", line.ljust(73))]
    assert len(drawn) >= 8
    assert "2 process(es) on cpu" in done.stdout


@pytest.mark.timeout(260)
def test_actor_critic(tmp_path: Path) -> None:
    done = launch(tmp_path, "--num_processes", "2", script="actor_critic.py")
    assert done.returncode == 0, done.stderr
    table = rows(done.stdout)
    assert [row[0] for row in table] == [str(2048 * epoch) for epoch in range(1, 7)]
    # By chance about one episode in ten ends at the goal.
    assert float(table[-1][1].rstrip("%")) > 85
    # The rate follows the episodes: half as many updates as on one process, and the same rates.
    assert [row[3] for row in table] == [f"{1e-2 * (1 - epoch / 6):.2e}" for epoch in range(1, 7)]


@pytest.mark.timeout(260)
def test_weighted(tmp_path: Path) -> None:
    """One process with two micro-batches, two processes, and one process with batches twice as large."""
    ways = [
        (("--num_processes", "2"), ("--epochs", "2")),
        ((), ("--epochs", "2", "--accumulation", "2")),
        ((), ("--epochs", "2", "--batch_size", "16")),
    ]
    tables = []
    for options, words in ways:
        done = launch(tmp_path, *options, script="weighted.py", words=words)
        assert done.returncode == 0, done.stderr
        tables.append([[float(cell) for cell in row] for row in rows(done.stdout)])
    characters, losses, rates = zip(*tables[0], strict=True)
    assert characters == (characters[0], 2 * characters[0])
    assert losses[1] < losses[0] < 4.9  # of 128 characters, all equally likely
    assert rates == (5e-3, 0.0)
    for other in tables[1:]:
        for row, wanted in zip(other, tables[0], strict=True):
            # fp32, and printed with three digits.
            assert row == pytest.approx(wanted, abs=2e-3)


@pytest.mark.timeout(260)
def test_resume(tmp_path: Path) -> None:
    """Killed at a random micro-batch and started again, it ends with the same weights, bit for bit."""
    kill_at = random.randrange(11, 110)  # by then the first save is on the disk: one is in flight at a time
    words = ("--kill_at", str(kill_at))
    ways = ((), ()), (("--max_restarts", "1"), words)
    ends = []
    for number, (options, given) in enumerate(ways):
        project = ("--project_dir", str(tmp_path / str(number)))
        done = launch(tmp_path, *options, script="resume.py", words=(*project, *given))
        assert done.returncode == 0, done.stderr
        ends.append(done.stdout.splitlines())
    assert re.fullmatch(r"114 micro-batches, weights [0-9a-f]{16}", ends[0][-1])
    assert ends[1][-1] == ends[0][-1], f"killed at {kill_at}"
    assert re.fullmatch(r"going on after \d+ micro-batches", ends[1][0]), "it was killed, and went on"
