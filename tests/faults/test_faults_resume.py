"""A training run that is killed anywhere, also while it saves, ends as if it had not been."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "resume.py"


def last_lines(folder: Path, *words: str, processes: int = 2) -> list[str]:
    launch = [sys.executable, "-m", "accel_cli", "launch", "--cpu", f"--num_processes={processes}"]
    done = subprocess.run(
        [*launch, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    line = last_lines(tmp_path_factory.mktemp("whole"), str(EXAMPLE))[-1]
    assert re.fullmatch(r"58 micro-batches, weights [0-9a-f]{16}", line)
    return line


@pytest.mark.timeout(600)
@pytest.mark.parametrize("attempt", range(3))
def test_killed_at_a_random_micro_batch(tmp_path: Path, undisturbed: str, attempt: int) -> None:
    kill_at = random.randrange(6, 57)
    lines = last_lines(tmp_path, "--max_restarts", "1", str(EXAMPLE), "--kill_at", str(kill_at))
    assert lines[-1] == undisturbed, f"killed at {kill_at}"
    # One save is in flight at a time: the one of the 10th micro-batch waits until the 5th's is committed.
    if kill_at > 10:
        assert lines[0].startswith("going on after")


@pytest.mark.timeout(600)
def test_killed_before_anything_is_saved(tmp_path: Path, undisturbed: str) -> None:
    lines = last_lines(tmp_path, "--max_restarts", "1", str(EXAMPLE), "--kill_at", "3")
    assert lines == [undisturbed]


@pytest.mark.timeout(600)
def test_killed_while_it_saves(tmp_path: Path, undisturbed: str) -> None:
    """The save in the background has begun with the micro-batch that is the last one."""
    lines = last_lines(tmp_path, "--max_restarts", "1", str(EXAMPLE), "--kill_at", "30")
    assert lines[-1] == undisturbed
    assert lines[0] in {f"going on after {saved} micro-batches" for saved in (20, 25, 30)}
