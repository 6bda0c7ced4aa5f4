"""The README's loop runs as it stands, on one process and on two."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.world(1, 2)
def test_the_loop_runs(pool, world):
    (loop,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)

    def run():
        # Workers of the pool draw the same numbers, processes that are launched do not.
        torch.seed()
        exec(loop, {"__name__": "__main__"})

    pool.run(world, run)
