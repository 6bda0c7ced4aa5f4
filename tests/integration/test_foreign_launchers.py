"""A script finds its place under launchers that are not ours: torchrun, Open MPI, srun, or none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import torch
from accel import Accelerator
accelerator = Accelerator(cpu=True)
total = accelerator.reduce(torch.tensor([accelerator.process_index + 1.0])).item()
found = [accelerator.process_index, accelerator.local_process_index, accelerator.num_processes, total]
open(f"{sys.argv[1]}/{accelerator.process_index}.json", "w").write(json.dumps(found))
"""


def run(folder: Path, *command: str, **variables: str) -> list[list[float]]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [*command, sys.executable, str(script), str(folder)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_alone(tmp_path: Path) -> None:
    assert run(tmp_path) == [[0, 0, 1, 1.0]]


def test_torchrun(tmp_path: Path) -> None:
    torchrun = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--no-python",
    )
    assert run(tmp_path, *torchrun) == [[0, 0, 2, 3.0], [1, 1, 2, 3.0]]


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="Open MPI's mpirun is not installed")
def test_open_mpi(tmp_path: Path) -> None:
    mpirun = ("mpirun", "--oversubscribe", "-np", "2")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    assert run(tmp_path, *mpirun, **root) == [[0, 0, 2, 3.0], [1, 1, 2, 3.0]]


def test_slurm_variables(tmp_path: Path) -> None:
    """What srun gives a step of one task; the ranks of a larger step need a cluster."""
    step = {
        "SLURM_JOB_ID": "41",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": "1",
        "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_NNODES": "1",
        "SLURM_TASKS_PER_NODE": "1",
        "SLURM_JOB_NODELIST": "node[003-007]",
    }
    assert run(tmp_path, **step) == [[0, 0, 1, 1.0]]
