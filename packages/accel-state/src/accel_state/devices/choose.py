"""Find kinds of hardware by name, and choose the one a process computes on."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from accel_core import plugins

if TYPE_CHECKING:
    from accel_core.protocols import Device

_ORDER = ("cuda", "xpu", "hpu", "npu", "mlu", "musa", "sdaa", "neuron", "xla", "mps", "cpu")
"""Who is asked first. Kinds of other distributions come after these and before the CPU."""


@cache
def hardware_of(name: str) -> Device:
    """Return the one `Device` object of this process for the torch device type ``name``.

    Raises UnknownNameError, with the nearest name, when nobody offers that kind.
    """
    device: Device = plugins.find(plugins.DEVICES, name)()
    return device


def device_names() -> list[str]:
    """Return every kind of hardware that an installed distribution offers, in the order of `detect`."""
    names = plugins.names(plugins.DEVICES)
    known = [name for name in _ORDER if name in names and name != _ORDER[-1]]
    others = [name for name in names if name not in _ORDER]
    return [*known, *others, *(name for name in _ORDER[-1:] if name in names)]


@cache
def detect() -> Device:
    """Return the first kind of hardware that is available; the CPU when no accelerator is."""
    return next(device for device in map(hardware_of, device_names()) if device.available())


__all__ = ["detect", "device_names", "hardware_of"]
