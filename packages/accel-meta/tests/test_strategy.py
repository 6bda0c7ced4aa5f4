"""A strategy is chosen by name, a third party's like ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from torch import nn

from accel import Accelerator

THEIRS = """
from accel_parallel import Single

class Loud(Single):
    name = "loud"

    def backward(self, loss, *, sync=True, **kwargs):
        print("backward through", self.name)
        super().backward(loss, sync=sync, **kwargs)
"""

SCRIPT = """
import torch
from accel import Accelerator
accelerator = Accelerator(cpu=True, strategy="loud")
model = accelerator.prepare(torch.nn.Linear(2, 1))
accelerator.backward(model(torch.ones(1, 2)).sum())
print(model.weight.grad.tolist(), accelerator)
"""


def test_a_third_partys_strategy_is_found_by_its_entry_point(tmp_path: Path) -> None:
    (tmp_path / "their_strategy.py").write_text(THEIRS)
    info = tmp_path / "their_strategy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-strategy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[accel.strategies]\nloud = their_strategy:Loud\n")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{SCRIPT}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "backward through loud"
    assert done.stdout.splitlines()[1].startswith("[[1.0, 1.0]]")
    assert "strategy=loud" in done.stdout


def test_an_unknown_name_comes_with_the_nearest(pool: Any) -> None:
    (error,) = pool.failures(1, lambda: Accelerator(cpu=True, strategy="dpp"))
    assert type(error).__name__ == "UnknownNameError"
    assert error.nearest == "ddp"


def test_single_on_several_processes_is_refused(pool: Any) -> None:
    def train() -> None:
        Accelerator(cpu=True, strategy="single").prepare(nn.Linear(2, 1))

    for error in pool.failures(2, train):
        assert type(error).__name__ == "CapabilityError"
        assert "each of the 2 would train another one" in str(error)


def test_ddp_on_one_process_is_refused(pool: Any) -> None:
    (error,) = pool.failures(1, lambda: Accelerator(cpu=True, strategy="ddp").prepare(nn.Linear(2, 1)))
    assert "use the strategy 'single'" in str(error)


def test_nothing_holds_the_group_once_it_is_left(pool: Any) -> None:
    """gloo's threads end with the group; one that outlives it may abort the process as it exits."""

    def holders() -> list[str]:
        import gc

        from accel_state import process

        accelerator = Accelerator(cpu=True)
        group = process.start().collectives.process_group  # type: ignore[attr-defined]
        accelerator.wait_for_everyone()
        process.shutdown()
        gc.collect()
        return [type(other).__name__ for other in gc.get_referrers(group) if not hasattr(other, "f_code")]

    assert pool.run(2, holders) == [[], []]
