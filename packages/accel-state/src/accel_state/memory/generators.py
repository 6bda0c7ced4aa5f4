"""The states of the random number generators, kept over an attempt that failed."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch

from accel_state import process


class Generators:
    """Where the generators of this process stand now: Python, NumPy when it is in use, torch, the device."""

    def __init__(self) -> None:
        self._python = random.getstate()
        numpy: Any = sys.modules.get("numpy")
        self._numpy = None if numpy is None else numpy.random.get_state()
        self._torch = torch.default_generator.get_state()
        state = process.current()
        self._hardware = None if state is None or state.device.type == "cpu" else state.hardware
        self._device = None if self._hardware is None else self._hardware.rng.get_state()

    def restore(self) -> None:
        """Put all of them back to where they stood."""
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
        torch.default_generator.set_state(self._torch)
        if self._hardware is not None and self._device is not None:
            self._hardware.rng.set_state(self._device)


__all__ = ["Generators"]
