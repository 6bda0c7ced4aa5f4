"""How much of a model each device may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from accel_core.errors import CapabilityError, UnknownNameError

from ..dtypes import AnyDtype
from .host import host_memory
from .solving import KEEPERS
from .strategies import spread
from .units import memory_size
from .walking import outline_of


def get_max_memory(max_memory: Mapping[int | str, int | str] | None = None) -> dict[int | str, int]:
    """Return the bytes to use on each device: accelerators by number, then ``"cpu"`` and ``"disk"``.

    Without ``max_memory``, what is free now on each accelerator of this machine, and on the host, within
    the limits of its container. With it, its sizes (see `convert_file_size_to_int`) in that order; what it
    does not name is not used, and numbers need not be those of this machine: a map may be made for another.
    Raises UnknownNameError for what is no device, ConfigError for what is no size.
    """
    if max_memory is None:
        found: dict[int | str, int] = {number: free_memory(number) for number in range(device_count())}
        # Where accelerator and host share one memory, its free part is offered once.
        return {**found, "cpu": host_memory()}
    sizes: dict[int | str, int] = {}
    for key, size in max_memory.items():
        sizes[_device(key)] = memory_size(size, f"max_memory[{key!r}]")
    return dict(sorted(sizes.items(), key=lambda item: _rank(item[0])))


def get_balanced_memory(
    model: nn.Module,
    max_memory: Mapping[int | str, int | str] | None = None,
    no_split_module_classes: Sequence[str] | None = None,
    dtype: AnyDtype | None = None,
    special_dtypes: Mapping[str, AnyDtype] | None = None,
    low_zero: bool = False,
) -> dict[int | str, int]:
    """Return limits for `infer_auto_device_map` under which every accelerator holds about as much.

    The fullest holds as little as the order of the model and its unsplittable modules allow. ``low_zero``:
    the first gets only what the others have no room for. Where the accelerators cannot hold the model
    together, the limits are those of `get_max_memory`. Raises as that does.
    """
    limits = get_max_memory(max_memory)
    outline = outline_of(model, no_split_module_classes, dtype, special_dtypes)
    return spread(outline, limits, "balanced_low_0" if low_zero else "balanced")


def device_count() -> int:
    """Return how many accelerators torch sees."""
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def free_memory(number: int) -> int:
    """Return the bytes that are free on an accelerator, with those that torch holds and does not use.

    Raises CapabilityError for one that does not tell.
    """
    device = torch.device(_type(), number)
    module: Any = torch.get_device_module(device)
    if hasattr(module, "recommended_max_memory"):
        # It shares the memory of the host, and says how much of it is good to take.
        used = int(module.driver_allocated_memory()) if hasattr(module, "driver_allocated_memory") else 0
        return max(0, min(int(module.recommended_max_memory()) - used, host_memory()))
    held = used = 0
    if hasattr(module, "memory_reserved") and hasattr(module, "memory_allocated"):
        held, used = int(module.memory_reserved(device)), int(module.memory_allocated(device))
    if hasattr(module, "mem_get_info"):
        # Some drivers cannot say what others use.
        with suppress(RuntimeError, NotImplementedError):
            return int(module.mem_get_info(device)[0]) + held - used
    if hasattr(module, "get_device_properties"):
        return max(0, int(module.get_device_properties(device).total_memory) - used)
    raise CapabilityError(
        f"{device} does not tell how much memory it has",
        fix=f"say how much may be used: max_memory={{{number}: '16GiB', 'cpu': '32GiB'}}",
    )


def _type() -> str:
    accelerator = torch.accelerator.current_accelerator()
    return "cpu" if accelerator is None else accelerator.type


def _device(key: int | str) -> int | str:
    """Return how maps call the device that ``key`` stands for."""
    if isinstance(key, int) and not isinstance(key, bool) and key >= 0:
        return key
    if isinstance(key, str):
        if key in KEEPERS:
            return key
        if key.isascii() and key.isdigit():
            # From JSON, which has texts for keys only.
            return int(key)
        kind, _, number = key.partition(":")
        if kind == _type() and number.isascii() and number.isdigit():
            return int(number)
        if key in _NAMED or (kind == _type() and not number):
            return key
    known = {*map(str, range(device_count())), *KEEPERS, *_NAMED, _type()}
    raise UnknownNameError(
        "device",
        str(key),
        known,
        fix="accelerators are whole numbers from 0 on; the others are 'cpu' and 'disk'",
    )


_NAMED = ("mps",)
"""Accelerators of which a machine has one only, and which maps may call by their name."""


def _rank(key: int | str) -> tuple[int, int]:
    if isinstance(key, int):
        return (0, key)
    return (2, KEEPERS.index(key)) if key in KEEPERS else (1, 0)


__all__ = ["device_count", "free_memory", "get_balanced_memory", "get_max_memory"]
