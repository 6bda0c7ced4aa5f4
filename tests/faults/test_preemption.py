"""Runs that are killed, signalled or out of time, and started again, end as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from accel_state.leaving import read_marker

SCRIPT = Path(__file__).with_name("preempted.py")
STEPS = 24
GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "preemption.md"
pytestmark = pytest.mark.timeout(300)


class Job:
    """A folder, and launches of the script in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
        self.environ["HF_HOME"] = str(folder)

    def command(self, *options: object, happens: tuple[str, ...] = (), steps: int = STEPS) -> list[str]:
        launch = [sys.executable, "-m", "accel_cli", "launch", "--cpu", *map(str, options)]
        return [*launch, str(SCRIPT), str(steps), *happens]

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environ,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *options: object, **more: Any) -> tuple[int, str]:
        return self.end(self.start(*self.command(*options, **more)))

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        try:
            _, err = process.communicate(timeout=200)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return process.returncode, err

    def trace(self, rank: int = 0) -> list[dict[str, Any]]:
        path = self.folder / f"trace.{rank}.txt"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait(self, process: subprocess.Popen[str], lines: int, ranks: int) -> None:
        limit = time.monotonic() + 120
        while any(len(self.trace(rank)) < lines for rank in range(ranks)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit
            time.sleep(0.05)

    def ids(self, rank: int = 0) -> list[list[int]]:
        """Return the samples of each step as they count in the end: what was done twice, the second time."""
        last = {line["step"]: line["ids"] for line in self.trace(rank) if "ids" in line}
        return [last[step] for step in sorted(last)]

    def final(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "final.json").read_text())
        return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Job]:
    """Return runs on one and two processes that nothing happened to."""
    jobs = {}
    for world in (1, 2):
        jobs[world] = Job(tmp_path_factory.mktemp(f"whole-{world}"))
        assert jobs[world].run("--num_processes", world)[0] == 0
        assert len(jobs[world].ids()) == STEPS
    return jobs


@pytest.mark.parametrize("world", [1, 2])
def test_a_killed_process_and_a_restart_change_nothing(
    tmp_path: Path, whole: dict[int, Job], world: int
) -> None:
    job = Job(tmp_path)
    code, err = job.run("--num_processes", world, "--max_restarts", 1, happens=("kill",))
    assert code == 0, err
    assert f"rank {world - 1} (process" in err
    assert "was ended by SIGKILL. All processes are started again (1 of 1)." in err
    for rank in range(world):
        # Saved after step 4, killed after step 6.
        second = [line for line in job.trace(rank) if line["attempt"] == 1]
        assert second[0] == {"attempt": 1, "step": 4, "resumed": True}
        assert job.ids(rank) == whole[world].ids(rank)
    assert job.final() == whole[world].final()


def test_machines_start_again_together(tmp_path: Path, whole: dict[int, Job]) -> None:
    """Two launchers stand for two machines, which keep the store of the first attempt."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = Job(tmp_path)
    common = ["--num_processes", 2, "--num_machines", 2, "--main_process_ip", "127.0.0.1"]
    common += ["--main_process_port", port, "--max_restarts", 1]
    launchers = [
        job.start(*job.command(*common, "--machine_rank", number, happens=("kill",))) for number in (1, 0)
    ]
    for process in launchers:
        code, err = job.end(process)
        assert code == 0, err
    for rank in (0, 1):
        assert {"attempt": 1, "step": 4, "resumed": True} in job.trace(rank)
        assert job.ids(rank) == whole[2].ids(rank)
    assert job.final() == whole[2].final()


def test_a_signal_to_one_rank_stops_all_at_one_step_and_they_are_started_again(
    tmp_path: Path, whole: dict[int, Job]
) -> None:
    job = Job(tmp_path)
    process = job.start(*job.command("--num_processes", 2, "--max_restarts", 1, happens=("wait",)))
    job.wait(process, 3, 2)
    workers = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(workers.stdout.split()[-1]), signal.SIGUSR1)
    code, err = job.end(process)
    assert code == 0, err
    assert "exited with code 75. All processes are started again (1 of 1)." in err
    assert "Traceback" not in err
    stops = [[line for line in job.trace(rank) if "stops" in line] for rank in (0, 1)]
    assert len(stops[0]) == 1
    assert stops[0] == stops[1]
    assert re.fullmatch(r"SIGUSR1, rank [01]", stops[0][0]["stops"])
    assert 2 < stops[0][0]["step"] < STEPS
    for rank in (0, 1):
        assert {"attempt": 1, "step": stops[0][0]["step"], "resumed": True} in job.trace(rank)
        assert job.ids(rank) == whole[2].ids(rank)
    assert job.final() == whole[2].final()


def test_where_no_time_is_left_nothing_is_started_again(tmp_path: Path) -> None:
    job = Job(tmp_path)
    code, err = job.run(
        "--num_processes", 1, "--max_restarts", 3, happens=("deadline", "wait"), steps=100_000
    )
    assert code == 75, err
    assert "All processes are started again" not in err
    assert {line["attempt"] for line in job.trace()} == {0}
    assert job.trace()[-1]["kind"] == "deadline"
    marker = read_marker(job.folder / "run")
    assert marker is not None
    assert marker["kind"] == "deadline"
    assert Path(job.folder, marker["checkpoint"]).is_dir()


def test_the_batch_script_of_the_guide_saves_asks_for_a_requeue_and_goes_on(
    tmp_path: Path, whole: dict[int, Job]
) -> None:
    """As SLURM runs it: USR1 to the shell ahead of the end, and the same script again after the requeue."""
    (text,) = re.findall(r"```bash\n(#!/bin/bash.*?)```", GUIDE.read_text(), re.DOTALL)
    job = Job(tmp_path)
    batch = tmp_path / "job.sh"
    batch.write_text(text.replace("train.py", f"{SCRIPT} {STEPS} wait"))
    for name, line in (
        ("scontrol", 'echo "$@" >> asked'),
        ("accel", f'exec {sys.executable} -m accel_cli "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    job.environ |= {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "42",
        "ACCELERATE_USE_CPU": "1",
    }
    process = job.start("/bin/bash", str(batch))
    job.wait(process, 3, 2)
    os.kill(process.pid, signal.SIGUSR1)
    code, err = job.end(process)
    assert code == 75, err
    assert (tmp_path / "asked").read_text() == "requeue 42\n"
    marker = read_marker(tmp_path / "run")
    assert marker is not None
    assert (marker["code"], marker["reason"], marker["world_size"]) == (75, "SIGUSR1", 2)
    code, err = job.end(job.start("/bin/bash", str(batch)))
    assert code == 0, err
    assert (tmp_path / "asked").read_text() == "requeue 42\n"
    assert read_marker(tmp_path / "run") is None
    assert job.ids() == whole[2].ids()
    assert job.final() == whole[2].final()
