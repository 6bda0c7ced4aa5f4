"""Which hardware tests may declare, and how to find out what is missing; torch is imported when asked."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache

MARKERS = {
    "cpu": "cpu: needs only a CPU",
    "gpu": "gpu(count=1): needs CUDA or ROCm GPUs",
    "mps": "mps: needs Apple's Metal device",
    "hpu": "hpu(count=1): needs Intel Gaudi accelerators",
}


def _gpus() -> tuple[int, str]:
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return 0, f"torch {torch.__version__} is built without CUDA and ROCm"
    return torch.cuda.device_count(), "torch.cuda.device_count() is {found}"


def _mps() -> tuple[int, str]:
    import torch

    if not torch.backends.mps.is_built():
        return 0, f"torch {torch.__version__} is built without MPS"
    return int(torch.backends.mps.is_available()), "torch.backends.mps.is_available() is False"


def _hpus() -> tuple[int, str]:
    if importlib.util.find_spec("habana_frameworks") is None:
        return 0, "the package habana_frameworks is not installed"
    from habana_frameworks.torch import hpu  # type: ignore[import-not-found, unused-ignore]

    return int(hpu.device_count()), "habana_frameworks.torch.hpu.device_count() is {found}"


_COUNT: dict[str, Callable[[], tuple[int, str]]] = {"gpu": _gpus, "mps": _mps, "hpu": _hpus}


@cache
def _found(name: str) -> tuple[int, str]:
    if importlib.util.find_spec("torch") is None:
        return 0, "torch is not installed"
    count, reason = _COUNT[name]()
    return count, reason.format(found=count)


def missing(name: str, count: int = 1) -> str:
    """Return why ``count`` devices of this hardware are not here, or an empty string when they are."""
    if name == "cpu":
        return ""
    found, reason = _found(name)
    if found >= count:
        return ""
    return reason if count == 1 else f"{reason}, {count} are needed"


__all__ = ["MARKERS", "missing"]
