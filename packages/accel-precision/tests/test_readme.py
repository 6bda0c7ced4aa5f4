"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu
README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_of_the_readme_run(example):
    exec(compile(example, str(README), "exec"), {})
