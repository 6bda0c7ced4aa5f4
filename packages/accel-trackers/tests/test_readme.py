"""The README's examples run as they stand."""

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    output = io.StringIO()
    names = {"__name__": "readme"}
    with contextlib.redirect_stdout(output):
        for block in blocks:
            exec(compile(block, str(README), "exec"), names)
    assert output.getvalue().splitlines() == ["{'learning_rate': 0.1}", f"(2, {1 / 3})", "1 {'loss': 0.5}"]
