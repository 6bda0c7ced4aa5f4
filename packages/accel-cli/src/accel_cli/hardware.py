"""Count the accelerators of this machine without importing torch or a vendor package.

The kernel shows one device file per accelerator; the vendor's variable narrows them down. That is
enough to choose a number of processes. What the script then really uses is decided in the script.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple


class Kind(NamedTuple):
    """One vendor's device files and the variable that hides some of them."""

    label: str
    folder: str
    pattern: str
    visible: str


KINDS = (
    Kind("NVIDIA GPU", "/dev", r"nvidia\d+", "CUDA_VISIBLE_DEVICES"),
    Kind("Ascend NPU", "/dev", r"davinci\d+", "ASCEND_RT_VISIBLE_DEVICES"),
    Kind("Cambricon MLU", "/dev", r"cambricon_dev\d+", "MLU_VISIBLE_DEVICES"),
    Kind("Gaudi HPU", "/dev/accel", r"accel\d+", "HABANA_VISIBLE_MODULES"),
)


class Accelerators(NamedTuple):
    """The accelerators this process may use: how many, and the variable that selects among them."""

    label: str
    usable: int
    visible: str


NONE = Accelerators("accelerator", 0, "CUDA_VISIBLE_DEVICES")


def accelerators(environ: Mapping[str, str] | None = None) -> Accelerators:
    """Return the accelerators of the first kind that this machine has, or none."""
    env = os.environ if environ is None else environ
    for kind in KINDS:
        present = _device_files(kind)
        if present:
            return Accelerators(kind.label, visible(env.get(kind.visible), present), kind.visible)
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
    return count


def _device_files(kind: Kind) -> int:
    try:
        names = os.listdir(kind.folder)
    except OSError:
        return 0
    return sum(1 for name in names if re.fullmatch(kind.pattern, name))


def cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


__all__ = ["KINDS", "Accelerators", "Kind", "accelerators", "cpus", "visible"]
