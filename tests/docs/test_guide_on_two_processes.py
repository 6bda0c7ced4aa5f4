"""The snippets of the guides run on two processes as well as on one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
# The blocks of these are programs of their own; those of extending.md are the files of a distribution.
APART = {"first_steps.md", "extending.md"}


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (GUIDE / page).read_text(), re.DOTALL)


SCRIPTS = {
    **{page.name: "\n".join(blocks(page.name)) for page in GUIDE.glob("*.md") if page.name not in APART},
    **{f"first_steps.md-{number}": text for number, text in enumerate(blocks("first_steps.md"))},
}


@pytest.mark.world(2)
@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_the_python_of_a_page_runs_on_two_processes(pool: Any, name: str, tmp_path: Path) -> None:
    code = SCRIPTS[name]

    def run() -> None:
        import torch

        # What a guide writes; the pool goes back.
        os.chdir(tmp_path)
        # Workers of the pool draw the same numbers, processes that are launched do not.
        torch.seed()
        # A class in a guide is looked up in its module by those who pickle it.
        exec(code, {"__name__": "guide"})

    pool.run(2, run)
