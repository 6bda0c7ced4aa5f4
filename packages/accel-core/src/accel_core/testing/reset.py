"""What a worker remembers before its first call and restores after each."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..settling import let_threads_rest

SEED = 0


@dataclass(frozen=True, slots=True)
class Baseline:
    """The process as it was: environment, folder, paths, warning filters, root logger."""

    environment: dict[str, str]
    folder: str
    path: list[str]
    argv: list[str]
    filters: list[Any]
    handlers: list[logging.Handler]
    level: int
    streams: tuple[Any, Any]

    @classmethod
    def take(cls) -> Baseline:
        """Remember, and put torch and the generators where every call starts from."""
        root = logging.getLogger()
        _reset_numbers()
        return cls(
            environment=dict(os.environ),
            folder=os.getcwd(),  # noqa: PTH109 - a string is what chdir gets back
            path=list(sys.path),
            argv=list(sys.argv),
            filters=list(warnings.filters),
            handlers=list(root.handlers),
            level=root.level,
            streams=(sys.stdout, sys.stderr),
        )

    def restore(self) -> list[str]:
        """Restore everything; return what failed. Collective: a process group is destroyed here."""
        faults: list[str] = []
        for what, undo in (
            ("accel state", _reset_accel),
            ("process group", _destroy_group),
            ("generators and torch settings", _reset_numbers),
            ("environment", self._restore_process),
        ):
            try:
                undo()
            except Exception as error:  # noqa: BLE001 - told to the pool, which replaces this worker
                faults.append(f"{what} could not be reset: {error!r}")
        return faults

    def _restore_process(self) -> None:
        sys.stdout, sys.stderr = self.streams
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.folder)
        sys.path[:] = self.path
        sys.argv[:] = self.argv
        # Also tells the cache of seen warnings that the filters changed.
        warnings.resetwarnings()
        warnings.filters[:] = self.filters  # type: ignore[index]
        root = logging.getLogger()
        root.handlers[:] = self.handlers
        root.setLevel(self.level)


def _reset_accel() -> None:
    process = sys.modules.get("accel_state.process")
    reset: Callable[[], None] | None = getattr(process, "reset", None)
    if reset is not None:
        reset()


def _destroy_group() -> None:
    if "torch.distributed" not in sys.modules:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        let_threads_rest()
        dist.destroy_process_group()


def _reset_numbers() -> None:
    """Put the generators and torch's process-wide settings where a fresh process has them."""
    random.seed(SEED)
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(SEED)
    if "torch" not in sys.modules:
        return
    import torch

    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_num_threads(1)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.set_anomaly_enabled(False)
    torch.manual_seed(SEED)


__all__ = ["Baseline"]
