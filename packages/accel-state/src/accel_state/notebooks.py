"""Install PyTorch/XLA in a Colab notebook."""

from __future__ import annotations

import subprocess
import sys

import torch

from accel_core.errors import CapabilityError


def install_xla(upgrade: bool = False) -> None:
    """Install the ``torch_xla`` that belongs to this PyTorch; works in Google Colab only.

    ``upgrade``: take the latest PyTorch and the ``torch_xla`` that belongs to it. Raises
    CapabilityError elsewhere, and when pip does not succeed.
    """
    if "google.colab" not in sys.modules:  # Colab imports it before the first cell
        raise CapabilityError(
            "install_xla works in Google Colab only", fix="elsewhere run: pip install torch torch_xla"
        )
    done = subprocess.run(command(upgrade), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CapabilityError(f"pip could not install torch_xla: {done.stderr.strip()[-500:]}")


def command(upgrade: bool) -> list[str]:
    """Return the command that installs."""
    pip = [sys.executable, "-m", "pip", "install"]
    if upgrade:
        return [*pip, "--upgrade", "torch", "torch_xla[tpu]"]
    # torch_xla has the version of the PyTorch that it is built for.
    release = ".".join(str(torch.__version__).partition("+")[0].split(".")[:2])
    return [*pip, f"torch_xla[tpu]=={release}.*"]


__all__ = ["install_xla"]
