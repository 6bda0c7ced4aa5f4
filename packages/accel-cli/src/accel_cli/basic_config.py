"""A configuration file for one machine, written without asking."""

from __future__ import annotations

import os
from pathlib import Path

from accel_core.config import config_path, write_config
from accel_core.logging import get_logger

from .hardware import accelerators

logger = get_logger(__name__)

_LABELS = {
    "NVIDIA GPU": "MULTI_GPU",
    "AMD GPU": "MULTI_GPU",
    "Ascend NPU": "MULTI_NPU",
    "Cambricon MLU": "MULTI_MLU",
    "Gaudi HPU": "MULTI_HPU",
}
"""What several processes on the kinds of `accel_cli.hardware.KINDS` are called."""


def write_basic_config(
    mixed_precision: str = "no", save_location: str | os.PathLike[str] | None = None
) -> Path | bool:
    """Write a configuration file that uses every accelerator of this machine; return its path.

    The accelerators are counted without waking a driver, so a notebook needs no restart. A file that is
    there already is not touched: a warning says so, and False is returned. ``save_location`` is by
    default where ``accel launch`` looks. Raises ConfigError for a precision that the file cannot hold.
    """
    path = Path(save_location) if save_location is not None else config_path()
    if path.exists():
        logger.warning("There is a configuration file at %s already; it is left as it is", path)
        return False
    present = accelerators()
    return write_config(
        path,
        {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": _LABELS[present.label] if present.usable > 1 else "NO",
            "mixed_precision": mixed_precision.strip().lower(),
            "num_machines": 1,
            "num_processes": max(1, present.usable),
            "use_cpu": False,
            "debug": False,
        },
    )


__all__ = ["write_basic_config"]
