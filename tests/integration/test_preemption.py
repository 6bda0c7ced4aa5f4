"""``Accelerator.should_stop`` in loops, and one real process that a scheduler wants back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from accel import Accelerator
from accel.utils import PreemptionKwargs
from accel_core.errors import CapabilityError, CollectiveError, StateError
from accel_state.leaving import read_marker, write_marker


def prepared(accelerator: Accelerator) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = TensorDataset(torch.randn(480, 4), torch.randn(480, 1))
    parts: tuple[Any, Any, Any] = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=4))
    return parts


def steps(accelerator: Accelerator, parts: tuple[Any, Any, Any], at: dict[int, Any]) -> int | None:
    """Train, do ``at[step]()`` after a step, and return the step at which to stop."""
    model, optimizer, loader = parts
    for step, (x, y) in enumerate(loader):
        accelerator.backward(nn.functional.mse_loss(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
        at.get(step, lambda: None)()
        if accelerator.should_stop:
            return step
    return None


@pytest.mark.world(2)
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_all_ranks_stop_at_one_step_and_know_why(pool: Any, world: int, *, debug: bool) -> None:
    def run() -> tuple[int | None, int | None, str, str]:
        before = signal.getsignal(signal.SIGTERM)
        accelerator = Accelerator(cpu=True)
        parts = prepared(accelerator)
        first = steps(accelerator, parts, {})
        assert accelerator.stop_reason is None
        assert signal.getsignal(signal.SIGTERM) is not before
        own = {} if accelerator.is_main_process else {2: lambda: signal.raise_signal(signal.SIGTERM)}
        second = steps(accelerator, parts, own)
        reason = accelerator.stop_reason
        assert reason is not None
        return first, second, reason.kind, str(reason)

    env = {"ACCELERATE_DEBUG_MODE": "1"} if debug else {}
    (first, second, kind, reason), other = pool.run(world, run, env=env)
    assert (first, second, kind, reason) == other
    assert first is None
    assert (kind, reason) == ("signal", "SIGTERM, rank 1")
    assert second is not None
    assert 2 < second < 2 + 2 * 17  # a vote is for 16 steps at most, and is heard with the next


@pytest.mark.world(2)
def test_a_deadline_of_one_rank_leaves_time_for_the_save(pool: Any, world: int, tmp_path: Path) -> None:
    def run() -> tuple[int | None, str]:
        limit = PreemptionKwargs(deadline=timedelta(seconds=100), margin=60)
        accelerator = Accelerator(cpu=True, kwargs_handlers=[limit])
        parts = prepared(accelerator)
        assert not accelerator.should_stop
        if accelerator.process_index == 1:
            accelerator.preemption.note_save(40)
        stopped = steps(accelerator, parts, {})
        assert accelerator.stop_reason is not None
        return stopped, f"{accelerator.stop_reason.kind} {accelerator.stop_reason.rank}"

    first, second = pool.run(world, run)
    assert first == second
    assert first[0] is not None
    assert first[1] == "deadline 1"


def test_hooks_requests_and_marks_of_the_run_before(pool: Any, tmp_path: Path) -> None:
    write_marker(tmp_path, {"format": 1, "reason": "SIGTERM"})

    def run() -> list[Any]:
        accelerator = Accelerator(cpu=True, project_dir=str(tmp_path))
        twin = Accelerator(cpu=True)
        asked = []
        accelerator.stop_when(lambda: asked.append(1) or (len(asked) == 3 and "three are enough"))
        left = read_marker(tmp_path)
        found = [accelerator.should_stop for _ in range(3)]
        return [left, found, str(twin.stop_reason), twin.should_stop, accelerator.restart_count]

    env = {"TORCHELASTIC_RESTART_COUNT": "2"}
    found = pool.run(1, run, env=env)[0]
    assert found == [None, [False, False, True], "three are enough, rank 0", True, 2]


def test_a_second_accelerator_cannot_set_another_deadline(pool: Any) -> None:
    def run() -> None:
        assert not Accelerator(cpu=True, kwargs_handlers=[PreemptionKwargs(deadline=100)]).should_stop
        _ = Accelerator(cpu=True, kwargs_handlers=[PreemptionKwargs(deadline=50)]).should_stop

    (error,) = pool.failures(1, run)
    assert isinstance(error, StateError)
    assert "guarded already" in str(error)


@pytest.mark.world(2)
def test_inside_of_uneven_inputs_nobody_would_answer(pool: Any, world: int) -> None:
    def run() -> None:
        accelerator = Accelerator(cpu=True)
        model = accelerator.prepare(nn.Linear(4, 1))
        with accelerator.join_uneven_inputs([model]):
            for _ in range(1 + accelerator.process_index):
                accelerator.backward(model(torch.ones(2, 4)).sum())
                _ = accelerator.should_stop

    for error in pool.failures(world, run):
        assert isinstance(error, (CollectiveError, CapabilityError))
        assert "should_stop was asked for inside of join_uneven_inputs" in str(error)


def test_nobody_who_does_not_ask_gets_handlers(pool: Any) -> None:
    def run() -> bool:
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
        accelerator = Accelerator(cpu=True)
        steps_done = [accelerator.process_index, accelerator.restart_count]
        assert steps_done == [0, 0]
        return before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]

    assert pool.run(1, run) == [True]


WORKER = """
import sys, time
from pathlib import Path
import torch
from torch.utils.data import DataLoader, TensorDataset
from accel import Accelerator

accelerator = Accelerator(cpu=True, project_dir="run")
loader = accelerator.prepare(DataLoader(TensorDataset(torch.arange(2000.0)), num_workers=1))
for step, batch in enumerate(loader):
    time.sleep(0.02)
    if step == 1:
        Path("ready").touch()
    if accelerator.should_stop:
        try:
            accelerator.exit_for_requeue(step=step, checkpoint="run/checkpoints/checkpoint_0")
        finally:
            print("the last word", accelerator.stop_reason)
sys.exit(3)
"""


def test_one_process_leaves_with_75_and_a_marker(tmp_path: Path) -> None:
    """Without a launcher between, which becomes the script; with a worker that reads data."""
    (tmp_path / "train.py").write_text(WORKER)
    process = subprocess.Popen(
        [sys.executable, "-m", "accel_cli", "launch", "--cpu", "train.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        limit = time.monotonic() + 90
        while not (tmp_path / "ready").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGUSR1)
        out, err = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 75, err
    assert out == "the last word SIGUSR1, rank 0\n"
    assert "Traceback" not in err
    marker = read_marker(tmp_path / "run")
    assert marker is not None
    said = {"code": 75, "reason": "SIGUSR1", "kind": "signal", "rank": 0, "world_size": 1}
    assert said.items() <= marker.items()
    assert marker["checkpoint"] == "run/checkpoints/checkpoint_0"
    assert marker["step"] >= 1
