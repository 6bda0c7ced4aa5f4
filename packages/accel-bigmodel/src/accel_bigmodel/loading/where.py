"""Where tensors go, by a device map."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..hooks.align import full_device
from ..planning.resolve import main_of
from .placing import DISK, Place, PlaceOf
from .slots import Spot, nearest_entry

DeviceMap = Mapping[str, int | str | torch.device]


def places_of(device_map: DeviceMap | None, *, offload_buffers: bool) -> PlaceOf:
    """Return what says where a tensor goes. Without a map it stays, or goes from meta to the CPU."""
    return _stay if device_map is None else _places(device_map, offload_buffers=offload_buffers)


def _stay(_spot: Spot, tensor: torch.Tensor, _buffer: bool) -> Place:
    return torch.device("cpu") if tensor.device.type == "meta" else tensor.device


def _places(device_map: DeviceMap, *, offload_buffers: bool) -> PlaceOf:
    known: dict[str, Place] = {
        name: DISK if place == DISK else full_device(place) for name, place in device_map.items()
    }
    main = full_device(main_of(dict(device_map)))

    def place_of(spot: Spot, _tensor: torch.Tensor, buffer: bool) -> Place:
        place = nearest_entry(spot.name, known)
        # What the map leaves out, and buffers that are not offloaded, are where the model computes.
        if place is None or (buffer and place == DISK and not offload_buffers):
            return main
        return place

    return place_of


__all__ = ["DeviceMap", "places_of"]
