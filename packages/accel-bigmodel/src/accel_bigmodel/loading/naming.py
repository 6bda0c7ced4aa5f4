"""Checkpoints as users name them, and their tensors as the model calls them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel_core.errors import CheckpointError

from ..weights.mapped import Location
from ..weights.reader import CheckpointWeights, open_weights

_HUB = re.compile(r"[\w.-]+/[\w.-]+")


class Translated(Mapping[str, torch.Tensor]):
    """Weights under the names that a model has for them.

    ``names``: for each, what the checkpoint calls it. ``made``: what modules worked out from several.
    """

    def __init__(
        self, weights: CheckpointWeights, names: Mapping[str, str], made: Mapping[str, torch.Tensor]
    ) -> None:
        self.weights = weights
        self.source = weights.source
        self._names = names
        self._made = made

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._made[name] if name in self._made else self.weights[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        yield from self._names
        yield from self._made

    def __len__(self) -> int:
        return len(self._names) + len(self._made)

    def __contains__(self, name: object) -> bool:
        return name in self._names or name in self._made

    def __repr__(self) -> str:
        return repr(self.weights)

    def stored_name(self, name: str) -> str:
        """Return what the checkpoint calls it."""
        return self._names.get(name, name)

    def location(self, name: str) -> Location | None:
        """Return where its bytes are; None for what is not in one place."""
        return None if name in self._made else self.weights.location(self._names[name])

    def kind(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return its shape and its dtype."""
        if name in self._made:
            return tuple(self._made[name].shape), self._made[name].dtype
        return self.weights.kind(self._names[name])

    def same_as(self, name: str) -> str:
        """Return the name that its bytes are stored under."""
        return name if name in self._made else self.weights.same_as(self._names[name])

    def equal(self, one: str, other: str) -> bool:
        """Tell whether two tensors of one shape have the same values; of one dtype, the same bits."""
        first, second = self[one].contiguous(), self[other].contiguous()
        if first.dtype != second.dtype:
            return torch.equal(first, second.to(first.dtype))
        # As bytes, because NaN is not equal to itself.
        return torch.equal(first.view(-1).view(torch.uint8), second.view(-1).view(torch.uint8))

    def will_need(self, names: Iterable[str]) -> None:
        """Ask the system to read the pages of these tensors ahead. Never fails."""
        self.weights.will_need([self._names[name] for name in names if name in self._names])


def opened(checkpoint: str | os.PathLike[str], model: nn.Module) -> Translated:
    """Return the weights of ``checkpoint`` by the names that ``model`` has for them.

    Modules may rename what older versions of them saved, by hooks that plain ``load_state_dict`` runs, too.
    Raises as `open_weights`; a model of the Hub is not looked for.
    """
    given = os.fspath(checkpoint)
    if _HUB.fullmatch(given) and not Path(given).exists():
        raise CheckpointError(
            f"There is no file or folder {given!r} here",
            fix=f"if it is a model of the Hub, pass huggingface_hub.snapshot_download({given!r}); "
            "nothing is downloaded by loading",
        )
    weights = open_weights(given)
    hooks = [
        (hook, f"{path}." if path else "")
        for path, module in model.named_modules(remove_duplicate=False)
        for hook in module._load_state_dict_pre_hooks.values()
    ]
    if not hooks:
        return Translated(weights, {name: name for name in weights}, {})
    state: dict[str, Any] = {name: weights[name] for name in weights}
    stored = {id(value): name for name, value in state.items()}
    # What was taken out must live on, or its number could be that of something new.
    kept = list(state.values())
    for hook, prefix in hooks:
        hook(state, prefix, {}, True, [], [], [])
    names = {name: stored[id(value)] for name, value in state.items() if id(value) in stored}
    del kept
    made = {name: value for name, value in state.items() if name not in names}
    return Translated(weights, names, made)


__all__ = ["Translated", "opened"]
