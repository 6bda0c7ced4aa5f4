"""Make the compiled stand-in the device ``standin`` of this process, for as long as it lives."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .building import NAME, build


def load(compiled: Path | None = None) -> ModuleType:
    """Register the device, and return its namespace ``torch.standin``; twice does no harm.

    Beside what torch asks of every accelerator it has ``set_limit(bytes, device=0)``, ``set_delay(seconds)``
    for copies that are queued on streams, and ``trace(bool)`` with ``traced()`` for `races`.
    """
    import torch

    there: ModuleType | None = getattr(torch, "standin", None)
    if there is not None:
        return there
    found = importlib.util.spec_from_file_location(NAME, compiled or build())
    assert found is not None
    assert found.loader is not None
    native = importlib.util.module_from_spec(found)
    found.loader.exec_module(native)
    module = _namespace(native)
    utilities, register = vars(torch.utils), vars(torch)["_register_device_module"]
    utilities["rename_privateuse1_backend"]("standin")
    register("standin", module)
    utilities["generate_methods_for_privateuse1_backend"](for_storage=True)
    return module


def _namespace(native: Any) -> ModuleType:
    """Return the functions that torch expects in the namespace of an accelerator."""
    import torch

    def number(device: Any = None) -> int:
        if device is None:
            return int(native.current())
        if isinstance(device, int):
            return device
        return int(torch.device(device).index or 0)

    def of(what: Any) -> Any:
        return lambda device=None: what(number(device))

    def nothing(*_: Any) -> None:
        return None

    module = ModuleType("torch.standin", "The stand-in device.")
    functions: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": native.count,
        "current_device": native.current,
        "set_device": of(native.select),
        "synchronize": of(native.synchronize),
        "empty_cache": nothing,
        # Its operators run on the CPU, and draw from its generator.
        "manual_seed": nothing,
        "manual_seed_all": nothing,
        "get_rng_state": lambda device=None: torch.get_rng_state(),  # noqa: ARG005
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),  # noqa: ARG005
        "memory_allocated": of(native.used),
        "max_memory_allocated": of(native.peak),
        "reset_peak_memory_stats": of(native.reset_peak),
        "mem_get_info": of(lambda index: (native.limit(index) - native.used(index), native.limit(index))),
        "set_limit": lambda limit, device=None: native.set_limit(number(device), limit),
        # Beyond what accelerators have: how much later copies happen, whether host memory can be pinned and
        # how much is and was, and what was queued on which stream (see `races`).
        "set_delay": lambda seconds: native.set_delay(int(seconds * 1e6)),
        "set_pinning": native.set_pinning,
        "pinned_memory": native.pinned,
        "max_pinned_memory": native.pinned_peak,
        "trace": native.trace,
        "traced": native.traced,
        "reset": native.reset,
        "is_bf16_supported": lambda: True,
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
    }
    for name, function in functions.items():
        setattr(module, name, function)
    sys.modules[module.__name__] = module
    return module


class Loaded:
    """A function that loads the stand-in before it runs; for other processes."""

    def __init__(self, function: Any, compiled: Path) -> None:
        self.function = function
        self.compiled = compiled

    def __call__(self, *args: Any) -> Any:
        """Load or reset it, then return what the function returns."""
        load(self.compiled).reset()
        return self.function(*args)


__all__ = ["Loaded", "load"]
