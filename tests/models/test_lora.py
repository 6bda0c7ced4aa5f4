"""peft adapts, merges and loads on models that are offloaded here, and gets what it gets in memory."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("offloaded_lora.py")


@pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="needs peft, installed without what it needs"
)
def test_adapters_on_offloaded_models(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", PROGRAM, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = [
        line for line in done.stdout.splitlines() if line.endswith(("True", "False")) or "offloaded" in line
    ]
    assert len(shown) == 12
    # Two layers on the disk, and two matrices of the adapter beside each.
    assert "offloaded 6" in shown
    assert all(line.endswith("True") for line in shown if not line.startswith("offloaded"))
