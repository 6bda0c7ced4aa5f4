"""A PyTorch that was built without torch.distributed still trains on one process."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.cpu

# What such a build lacks: torch asks for this name to answer is_available().
WITHOUT = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
del torch._C._c10d_init
for name in [name for name in sys.modules if name.startswith("torch.distributed")]:
    del sys.modules[name]
import torch.distributed as dist
assert not dist.is_available()
"""


def run(code, **environ):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, check=False, env=environ
    )


def test_one_process_needs_no_collectives():
    done = run(
        "from accel_state import AcceleratorState, gather\n"
        "state = AcceleratorState(cpu=True)\n"
        "print(state.num_processes, gather(torch.ones(2)).tolist())\n"
    )
    assert (done.stdout, done.stderr) == ("1 [1.0, 1.0]\n", "")


def test_several_are_refused_with_the_reason():
    done = run(
        "from accel_state import PartialState\nPartialState(cpu=True)\n",
        RANK="0",
        WORLD_SIZE="2",
        LOCAL_RANK="0",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="1",
    )
    assert done.returncode == 1
    assert "this PyTorch was built without torch.distributed" in done.stderr
