"""The README's example runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_example(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(block, str(README), "exec"), {"__name__": "readme"})
    sizes, _, *rows = capsys.readouterr().out.splitlines()
    assert sizes == "400 GB, 1000 layers of 400 MB"
    assert [row.split()[0] for row in rows[:3]] == ["0", "cpu", "disk"]
