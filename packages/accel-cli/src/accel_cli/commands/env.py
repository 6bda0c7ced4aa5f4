"""``accel env``: what to put into a bug report. Works without torch, and when torch cannot be imported."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from accel_core.config.location import default_path

from ..hardware import cpus

_PACKAGES = (
    "accel-core", "accel-state", "accel-data", "accel-parallel", "accel-precision", "accel-bigmodel",
    "accel-trackers", "accel-cli", "accel-meta", "torch", "numpy", "PyYAML", "safetensors",
)  # fmt: skip

# In a process of its own: a broken torch, or a driver that hangs or crashes, must not end the report.
_TORCH = """\
import torch
print("CUDA", torch.version.cuda, "/ ROCm", torch.version.hip)
kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
print("accelerator", kind.type if kind else "none")
for index in range(torch.accelerator.device_count() if kind else 0):
    module = getattr(torch, kind.type, None)
    name = module.get_device_name(index) if hasattr(module, "get_device_name") else kind.type
    print(f"  {index}: {name}")
import torch.distributed as dist
built = [n for n in ("gloo", "nccl", "mpi", "xccl", "ucc") if getattr(dist, f"is_{n}_available", bool)()]
print("collective backends", ", ".join(built) if dist.is_available() else "none")
"""
_TORCH_SECONDS = 120


class Env:
    """Show versions, hardware and configuration."""

    name = "env"
    help = "Show versions, hardware and configuration, for a bug report."

    def configure(self, parser: ArgumentParser) -> None:
        """Add the one option."""
        parser.add_argument(
            "--config_file",
            "--config-file",
            metavar="FILE",
            help="the config file to show, instead of the default",
        )

    def run(self, arguments: Namespace) -> int:
        """Print the report."""
        for line in report(arguments.config_file):
            print(line)
        return 0


def report(path: str | None = None) -> Iterator[str]:
    """Yield the lines of the report; ``path`` is the config file to show.

    Raises ConfigError when a config file that was named cannot be read.
    """
    import platform

    yield f"- Platform: {platform.platform()}"
    yield f"- Python: {platform.python_version()} ({sys.executable})"
    yield f"- CPUs that this process may use: {cpus()}"
    yield "- Packages:"
    yield from _versions()
    yield "- PyTorch:"
    yield from _torch()
    yield "- Environment variables:"
    yield from _variables()
    yield "- Configuration:"
    yield from _configuration(path)


def _versions() -> Iterator[str]:
    from importlib.metadata import PackageNotFoundError, version

    for name in _PACKAGES:
        try:
            yield f"  - {name}: {version(name)}"
        except PackageNotFoundError:
            yield f"  - {name}: not installed"


def _torch() -> Iterator[str]:
    import subprocess

    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _TORCH],
            capture_output=True,
            text=True,
            timeout=_TORCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield f"  - gave no answer in {_TORCH_SECONDS} seconds"
        return
    yield from (f"  - {line}" for line in done.stdout.splitlines())
    if done.returncode:
        last = done.stderr.strip().splitlines()
        yield f"  - cannot be used: {last[-1] if last else f'it exited with code {done.returncode}'}"


def _variables() -> Iterator[str]:
    """Yield the variables of the environment contract and of the launchers that are set, and no others."""
    prefixes = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "FP8_")
    names = {
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "OMP_NUM_THREADS",
    }
    found = sorted(name for name in os.environ if name.startswith(prefixes) or name in names)
    yield from (f"  - {name}={os.environ[name]}" for name in found)
    if not found:
        yield "  - none is set"


def _configuration(path: str | None) -> Iterator[str]:
    place = path or default_path()
    if path is None and not os.path.isfile(place):
        yield f"  - no file at {place}"
        return
    yield f"  - from {place}"
    from accel_core.config import read_config

    yield from (f"  - {key}: {value}" for key, value in read_config(place).values.items())


if __name__ == "__main__":
    from ..main import run

    sys.exit(run(Env(), sys.argv[1:]))
