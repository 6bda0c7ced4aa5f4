"""The outline of a PyTorch model, in one walk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import nn

from ..dtypes import AnyDtype, measure
from .outline import Branch, Outline


def outline_of(
    model: nn.Module,
    no_split: Collection[str] | None = None,
    dtype: AnyDtype | None = None,
    special_dtypes: Mapping[str, AnyDtype] | None = None,
) -> Outline:
    """Return the parts of ``model``: modules of the classes ``no_split``, and modules without children.

    ``no_split``: None stands for what the model, and modules in it, list as ``_no_split_modules``.
    ``dtype``, ``special_dtypes``: as in `compute_module_sizes`.
    """
    return _Walk(
        _classes(model, no_split), measure(dtype, special_dtypes), bool(special_dtypes), no_split is None
    ).whole(model)


def _classes(model: nn.Module, no_split: Collection[str] | None) -> set[str]:
    named = getattr(model, "_no_split_modules", None) if no_split is None else no_split
    return {named} if isinstance(named, str) else set(named or ())


class _Walk:
    """One pass over a model: every module and tensor is looked at once for each place that it has."""

    def __init__(
        self, no_split: set[str], size: Callable[[str, torch.Tensor], int], named: bool, asks: bool
    ) -> None:
        self.no_split = no_split
        # Whether classes are asked what must not be split in them; each is once.
        self.asks = asks
        self.asked: set[type[nn.Module]] = set()
        self.size = size
        # Whether sizes depend on names: these take longer to put together than all the rest.
        self.named = named
        self.outline = Outline()
        # By identity, for as long as the model lives; the tensors are held by it.
        self.owners: dict[int, int] = {}
        self.sizes: dict[int, int] = {}

    def whole(self, model: nn.Module) -> Outline:
        self.outline.root = self.item("", model)
        return self.outline

    def item(self, name: str, module: nn.Module) -> Branch | int:
        kind = type(module).__name__
        if self.asks and type(module) not in self.asked:
            self.asked.add(type(module))
            self.no_split |= set(getattr(type(module), "_no_split_modules", None) or ())
        children = [(key, child) for key, child in module._modules.items() if child is not None]
        if kind in self.no_split or not children:
            return self.part(name, kind, module, children)
        start = f"{name}." if name else ""
        branch = Branch(name, len(self.outline.names))
        for own in (module._parameters, module._buffers):
            for key, tensor in own.items():
                if tensor is not None:
                    branch.items.append(self.tensor(start + key, tensor, own is module._parameters))
        branch.items += [self.item(start + key, child) for key, child in children]
        branch.last = len(self.outline.names)
        return branch

    def tensor(self, name: str, tensor: torch.Tensor, is_parameter: bool) -> int:
        number = len(self.outline.names)
        new, size = self.count(name, tensor, number, set()) if is_parameter else (0, 0)
        buffer = 0 if is_parameter else self.buffer(name, tensor)
        return self.outline.add(name, "parameter" if is_parameter else "buffer", new, buffer, size)

    def part(self, name: str, kind: str, module: nn.Module, children: list[tuple[str, nn.Module]]) -> int:
        number = len(self.outline.names)
        own = needed = buffers = 0
        here: set[int] = set()
        waiting: list[tuple[str, nn.Module]] = [(f"{name}." if name else "", module)]
        while waiting:
            start, each = waiting.pop()
            for key, tensor in each._parameters.items():
                if tensor is not None:
                    new, size = self.count(start + key if self.named else "", tensor, number, here)
                    own += new
                    needed += size
            for key, buffer in each._buffers.items():
                if buffer is not None:
                    buffers += self.buffer(start + key if self.named else "", buffer)
            if children:
                waiting += [
                    (f"{start}{key}." if self.named else "", child)
                    for key, child in reversed(each._modules.items())
                    if child is not None
                ]
        return self.outline.add(name, kind, own, buffers, needed)

    def count(self, name: str, tensor: torch.Tensor, number: int, here: set[int]) -> tuple[int, int]:
        """Return the bytes that a parameter adds to the model, and to what part ``number`` needs to run."""
        key = id(tensor)
        owner = self.owners.get(key)
        if owner is None:
            size = self.size(name, tensor)
            self.owners[key], self.sizes[key] = number, size
            return size, size
        if owner == number or key in here:
            return 0, 0
        here.add(key)
        self.outline.links.append((owner, number))
        return 0, self.sizes[key]

    def buffer(self, name: str, tensor: torch.Tensor) -> int:
        key = id(tensor)
        if key in self.owners:
            return 0
        self.owners[key] = -1
        return self.size(name, tensor)


__all__ = ["outline_of"]
