"""The tensors of a model, each once, with all the names and places that it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Spot:
    """One name of a tensor, and the table of the module that holds it under ``key``."""

    name: str
    module: nn.Module
    table: dict[str, Any]
    key: str


@dataclass(slots=True)
class Slot:
    """A tensor of a model: its spots, whether it is a buffer, and whether checkpoints have it."""

    tensor: torch.Tensor
    buffer: bool
    saved: bool = False
    spots: list[Spot] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the first of its names."""
        return self.spots[0].name


def slots_of(model: nn.Module) -> list[Slot]:
    """Return the parameters and buffers of ``model`` in its order; what is tied is one slot."""
    found: dict[int, Slot] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        start = f"{path}." if path else ""
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for key, tensor in table.items():
                if tensor is None:
                    continue
                slot = found.get(id(tensor))
                if slot is None:
                    slot = found[id(tensor)] = Slot(tensor, table is module._buffers)
                slot.saved |= table is module._parameters or key not in module._non_persistent_buffers_set
                slot.spots.append(Spot(start + key, module, table, key))
    return list(found.values())


def extras_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that keep more than tensors, and the name that they keep it under."""
    for path, module in model.named_modules(remove_duplicate=False):
        if type(module).set_extra_state is not nn.Module.set_extra_state:
            yield f"{path}._extra_state" if path else "_extra_state", module


def nearest_entry(name: str, entries: Mapping[str, _T]) -> _T | None:
    """Return the entry of the innermost module that holds ``name``, or of the tensor itself."""
    while name not in entries:
        if not name:
            return None
        name = name.rpartition(".")[0]
    return entries[name]


__all__ = ["Slot", "Spot", "extras_of", "nearest_entry", "slots_of"]
