"""The README's examples run as they stand, on one process and on two."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.world(1, 2)
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.split("\n")[0])
def test_the_readme_runs(pool, world, snippet):
    pool.run(world, lambda: exec(snippet, {"__name__": "__main__"}))
