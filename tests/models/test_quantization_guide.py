"""The guide on quantization runs as it stands, with the library that it is about."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from accel_state import process

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "quantization.md"
pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao")


def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(?:python|py)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 6
    names: dict[str, object] = {"__name__": "guide"}
    try:
        exec("\n".join(blocks), names)
    finally:
        process.reset()
    assert (tmp_path / "quantized" / "model.safetensors").exists()
