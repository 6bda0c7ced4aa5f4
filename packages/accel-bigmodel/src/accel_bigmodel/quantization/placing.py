"""Where each tensor of a model goes, by its device map."""

from __future__ import annotations

from collections.abc import Mapping

import torch

Place = int | str | torch.device
HOST, DISK = "cpu", "disk"


class Places:
    """A device map that answers by the name of a tensor. ``main``: where offloaded modules compute."""

    def __init__(self, device_map: Mapping[str, Place], main: torch.device) -> None:
        self.map = dict(device_map)
        self.main = main

    def _of(self, name: str) -> Place:
        parts = name.split(".")
        for count in range(len(parts), -1, -1):
            place = self.map.get(".".join(parts[:count]))
            if place is not None:
                return place
        return self.main

    def device(self, name: str) -> torch.device | None:
        """Return the device that a tensor stays on, None if it is offloaded."""
        place = self._of(name)
        if place == DISK or (self.main.type != HOST and str(place) == HOST):
            return None
        return torch.device(place)

    def computes(self, name: str) -> torch.device:
        """Return the device that a tensor is used on."""
        return self.device(name) or self.main

    def on_disk(self, name: str) -> bool:
        """Tell whether a tensor is to be in no memory."""
        return self._of(name) == DISK

    @property
    def devices(self) -> list[torch.device]:
        """Return every device that computes."""
        used = [torch.device(place) for place in self.map.values() if place != DISK]
        here = [device for device in used if self.main.type == HOST or device.type != HOST]
        return list(dict.fromkeys([*here, self.main]))

    @property
    def scattered(self) -> bool:
        """Tell whether hooks are needed: several devices, or something offloaded."""
        return len(set(map(str, self.map.values()))) > 1 or any(place == DISK for place in self.map.values())


def main_of(device_map: Mapping[str, Place]) -> torch.device:
    """Return the device that runs what is offloaded: the first beside host and disk, else the host."""
    runners = [place for place in device_map.values() if str(place) not in (HOST, DISK)]
    return torch.device(runners[0] if runners else HOST)


__all__ = ["Place", "Places", "main_of"]
