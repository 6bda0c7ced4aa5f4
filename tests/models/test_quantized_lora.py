"""peft trains adapters beside layers that are quantized here, and merges them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("quantized_lora.py")


@pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="needs peft, installed without what it needs"
)
def test_adapters_on_quantized_models() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", PROGRAM], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stdout.splitlines() if line.startswith(("8bit", "4bit"))]
    assert shown == [
        "8bit layer Linear8bitLt",
        "8bit learns True",
        "8bit merges True",
        "4bit layer Linear4bit",
        "4bit learns True",
        "4bit merges True",
    ]
