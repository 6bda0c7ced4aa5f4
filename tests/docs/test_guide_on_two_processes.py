"""Guides about what ranks do together run on two of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guide"


@pytest.mark.world(2)
@pytest.mark.parametrize("page", ["early_stopping.md", "memory.md"])
def test_the_python_of_a_page_runs_on_two_processes(pool: Any, page: str) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", (GUIDE / page).read_text(), re.DOTALL))
    pool.run(2, lambda: exec(code, {"__name__": "__main__"}))
