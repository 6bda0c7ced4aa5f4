"""Which tensor goes into which file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..checkpoint.sharing import plain_tensor


@dataclass(slots=True)
class Shard:
    """What one file holds. ``tied`` gives further names of its tensors, and the name each is stored under."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    size: int = 0

    def names(self) -> list[str]:
        """Return all names, the further ones last."""
        return [*self.tensors, *self.tied]


def divide(state: Mapping[str, torch.Tensor], limit: int) -> list[Shard]:
    """Return the files for ``state`` in its order, each of at most ``limit`` bytes of tensors.

    A tensor that is larger gets a file to itself. Tensors that are the same memory under several names
    are stored once. Those that only overlap are stored whole, each for itself: loading copies values
    into a model, which has its own way of sharing. Raises CheckpointError for what is no plain tensor.
    """
    kept: dict[tuple[object, ...], str] = {}
    tied: dict[str, list[str]] = {}
    plain = {name: plain_tensor(name, value, "the state of the model") for name, value in state.items()}
    # The header has a text of its own called "format"; a tensor of this name is stored under it.
    for name in sorted(plain, key=lambda each: each != "format"):
        first = kept.setdefault(_memory(plain[name], name), name)
        if first != name:
            tied.setdefault(first, []).append(name)
    result = [Shard()]
    stored = set(kept.values())
    for name in (name for name in plain if name in stored):
        size = plain[name].numel() * plain[name].element_size()
        if result[-1].tensors and result[-1].size + size > limit:
            result.append(Shard())
        shard = result[-1]
        shard.tensors[name] = plain[name]
        shard.tied |= dict.fromkeys(tied.get(name, ()), name)
        shard.size += size
    return result


def _memory(tensor: torch.Tensor, name: str) -> tuple[object, ...]:
    """Return a key that tensors have in common when they are one tensor under several names."""
    if tensor.numel() == 0:
        return (name,)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


__all__ = ["Shard", "divide"]
