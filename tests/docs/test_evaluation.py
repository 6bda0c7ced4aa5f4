"""The snippets of the guide on evaluation on two processes, where samples are padded and data are unequal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "evaluation.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(3))
def test_snippets_on_two_processes(tmp_path: Path, number: int) -> None:
    assert len(SNIPPETS) == 3
    (tmp_path / "snippet.py").write_text(SNIPPETS[number])
    done = subprocess.run(
        [sys.executable, "-m", "accel_cli", "launch", "--cpu", "--num_processes", "2", "snippet.py"],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("\n") == done.stderr.count("rank 0: 2.") == (number == 2)
