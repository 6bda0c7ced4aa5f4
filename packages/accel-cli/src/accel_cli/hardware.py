"""Count the accelerators of this machine without importing torch or a vendor package.

The kernel shows a file for each; the vendor's variables narrow them down. That is enough to choose
a number of processes. What the script then really uses is decided in the script.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple


class Kind(NamedTuple):
    """Where one vendor's devices show, and the variables that hide some of them."""

    label: str
    folder: str
    pattern: str
    visible: tuple[str, ...]
    """The first is the one that selects devices."""
    nonzero: str = ""
    """A file in each folder that matches; "0" in it means that this one is no accelerator."""


KINDS = (
    Kind("NVIDIA GPU", "/dev", r"nvidia\d+", ("CUDA_VISIBLE_DEVICES",)),
    Kind(
        "AMD GPU",
        "/sys/class/kfd/kfd/topology/nodes",
        r"\d+",
        ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
        nonzero="gpu_id",
    ),
    Kind("Ascend NPU", "/dev", r"davinci\d+", ("ASCEND_RT_VISIBLE_DEVICES",)),
    Kind("Cambricon MLU", "/dev", r"cambricon_dev\d+", ("MLU_VISIBLE_DEVICES",)),
    Kind("Gaudi HPU", "/dev/accel", r"accel\d+", ("HABANA_VISIBLE_MODULES",)),
)
UNCOUNTED = (
    # Intel's GPUs look like the one that only drives the screen; Neuron shows chips, not cores.
    Kind("accelerator", "/dev/dri", r"renderD\d+", ("ZE_AFFINITY_MASK",)),
    Kind("accelerator", "/dev", r"neuron\d+", ("NEURON_RT_VISIBLE_CORES",)),
    Kind("accelerator", "/dev", r"mtgpu\.\d+", ("MUSA_VISIBLE_DEVICES",)),
    Kind("accelerator", "/dev", r"tcaicard\d+", ("SDAA_VISIBLE_DEVICES",)),
)
"""Devices that may be there but cannot be counted from outside: their number is left to the user."""


class Accelerators(NamedTuple):
    """The accelerators this process may use: how many, and the variable that selects among them."""

    label: str
    usable: int
    visible: str
    counted: bool = True
    """False when there may be accelerators that cannot be counted from outside."""
    present: int = 0
    """How many the machine has, hidden ones too; 0 when they cannot be counted."""


NONE = Accelerators("no accelerator in /dev", 0, "CUDA_VISIBLE_DEVICES")


def accelerators(environ: Mapping[str, str] | None = None) -> Accelerators:
    """Return the accelerators of the first kind that this machine has, or none."""
    env = os.environ if environ is None else environ
    for kind in KINDS:
        present = _present(kind)
        if present:
            usable = min(visible(env.get(name), present) for name in kind.visible)
            return Accelerators(kind.label, usable, kind.visible[0], present=present)
    for kind in UNCOUNTED:
        if _present(kind):
            return Accelerators(kind.label, 0, kind.visible[0], counted=False)
    return NONE


def visible(setting: str | None, present: int) -> int:
    """Return how many of ``present`` devices the vendor's variable leaves; unset leaves all."""
    if setting is None:
        return present
    count = 0
    for item in setting.split(","):
        # The CUDA driver ignores everything from the first invalid entry on; -1 is the usual one.
        if not item.strip() or item.strip().startswith("-"):
            break
        count += 1
    return min(count, present)


def _present(kind: Kind) -> int:
    try:
        names = os.listdir(kind.folder)
    except OSError:
        return 0
    return sum(1 for name in names if re.fullmatch(kind.pattern, name) and _counts(kind, name))


def _counts(kind: Kind, name: str) -> bool:
    if not kind.nonzero:
        return True
    try:
        with open(os.path.join(kind.folder, name, kind.nonzero), encoding="ascii") as file:
            return file.read().strip() != "0"
    except OSError:
        return False


def cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


__all__ = ["KINDS", "UNCOUNTED", "Accelerators", "Kind", "accelerators", "cpus", "visible"]
