"""The documented questions: which hardware is there, and which PyTorch is this."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch.torch_version import TorchVersion

from accel_core.errors import ConfigError, Fault, UnknownNameError

from . import process
from .devices.choose import hardware_of

_VERSION = re.compile(r"v?\d+(\.\d+)*([-_.]?(a|b|c|rc|alpha|beta|pre|post|dev)[-_.]?\d*)*(\+[a-z0-9.]+)?")
"""PEP 440, but for its rarer spellings."""
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}


def is_torch_version(operation: str, version: str) -> bool:
    """Compare the version of PyTorch with ``version`` (PEP 440), what comes after a ``+`` left out.

    ``operation`` is one of ``<``, ``<=``, ``==``, ``!=``, ``>=`` and ``>``; UnknownNameError for
    others, ConfigError for what is no version.
    """
    if operation not in _COMPARISONS:
        raise UnknownNameError("comparison", str(operation), _COMPARISONS)
    # torch compares a text that is no version letter by letter.
    if not isinstance(version, str) or not _VERSION.fullmatch(version.strip()):
        raise ConfigError("is_torch_version", [Fault("version", version, "is no version", 'pass "2.6", say')])
    mine = TorchVersion(str(torch.__version__).partition("+")[0])
    return _COMPARISONS[operation](mine, version.strip())


def is_bf16_available(ignore_tpu: bool = False) -> bool:
    """Tell whether this process's hardware computes in bfloat16; with ``ignore_tpu``, not counting a TPU."""
    if ignore_tpu and is_torch_xla_available(check_is_tpu=True):
        return False
    return bool(process.chosen_hardware().supports("bf16"))


def is_cuda_available() -> bool:
    """Tell whether a GPU of NVIDIA or AMD can be used."""
    return _there("cuda")


def is_mps_available(min_version: str = "1.12") -> bool:
    """Tell whether an Apple GPU can be used, and PyTorch is at least ``min_version``."""
    return is_torch_version(">=", min_version) and _there("mps")


def is_xpu_available(check_device: bool = False) -> bool:  # noqa: ARG001 - documented
    """Tell whether an Intel GPU can be used; ``check_device`` changes nothing: one is always needed."""
    return _there("xpu")


def is_npu_available(check_device: bool = False) -> bool:  # noqa: ARG001 - documented
    """Tell whether an Ascend NPU can be used; ``check_device`` changes nothing: one is always needed."""
    return _there("npu")


def is_hpu_available() -> bool:
    """Tell whether a Gaudi accelerator can be used."""
    return _there("hpu")


def is_mlu_available() -> bool:
    """Tell whether a Cambricon MLU can be used."""
    return _there("mlu")


def is_musa_available() -> bool:
    """Tell whether a Moore Threads GPU can be used."""
    return _there("musa")


def is_sdaa_available() -> bool:
    """Tell whether a Tecorigin SDAA accelerator can be used."""
    return _there("sdaa")


def is_torch_xla_available(check_is_tpu: bool = False, check_is_gpu: bool = False) -> bool:
    """Tell whether PyTorch/XLA is installed and, when asked, drives TPUs or GPUs.

    Raises ConfigError when both are asked for.
    """
    if check_is_tpu and check_is_gpu:
        fault = Fault("check_is_gpu", True, "contradicts check_is_tpu", "ask for one of them")
        raise ConfigError("is_torch_xla_available", [fault])
    if importlib.util.find_spec("torch_xla") is None:
        return False
    if not check_is_tpu and not check_is_gpu:
        return True
    kind = importlib.import_module("torch_xla.runtime").device_type()
    return kind in ({"TPU"} if check_is_tpu else {"CUDA", "GPU"})


def is_ipex_available() -> bool:
    """Tell whether Intel's extension is installed, in the version that belongs to this PyTorch."""
    try:
        version = importlib.metadata.version("intel_extension_for_pytorch")
    except importlib.metadata.PackageNotFoundError:
        return False
    return version.split(".")[:2] == str(torch.__version__).split(".")[:2]


def _there(name: str) -> bool:
    return bool(hardware_of(name).available())


__all__ = [
    "is_bf16_available",
    "is_cuda_available",
    "is_hpu_available",
    "is_ipex_available",
    "is_mlu_available",
    "is_mps_available",
    "is_musa_available",
    "is_npu_available",
    "is_sdaa_available",
    "is_torch_version",
    "is_torch_xla_available",
    "is_xpu_available",
]
