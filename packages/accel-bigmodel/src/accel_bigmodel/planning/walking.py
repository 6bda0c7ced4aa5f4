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
        # The first part of each tensor, by the identity of what the model holds.
        self.owners: dict[int, int] = {}

    def whole(self, model: nn.Module) -> Outline:
        self.outline.root = self.item("", model)
        return self.outline

    def item(self, name: str, module: nn.Module) -> Branch | int:
        kind = type(module)
        if self.asks and kind not in self.asked:
            self.asked.add(kind)
            self.no_split |= set(getattr(kind, "_no_split_modules", None) or ())
        # Attributes of modules are looked up slowly, and these are all there are.
        inside = module.__dict__
        if not inside["_modules"] or kind.__name__ in self.no_split:
            return self.part(name, module)
        start = f"{name}." if name else ""
        branch = Branch(name, len(self.outline.names))
        items = branch.items
        for key, tensor in inside["_parameters"].items():
            if tensor is not None:
                items.append(self.parameter(start + key, tensor))
        for key, buffer in inside["_buffers"].items():
            if buffer is not None:
                items.append(self.outline.add(start + key, "buffer", 0, self.buffer(start + key, buffer), 0))
        for key, child in inside["_modules"].items():
            if child is not None:
                items.append(self.item(start + key, child))
        branch.last = len(self.outline.names)
        return branch

    def parameter(self, name: str, tensor: torch.Tensor) -> int:
        number = len(self.outline.names)
        size = self.size(name, tensor)
        if self.owners.setdefault(id(tensor), number) == number:
            return self.outline.add(name, "parameter", size, 0, size)
        self.outline.links.append((self.owners[id(tensor)], number))
        return self.outline.add(name, "parameter", 0, 0, size)

    def part(self, name: str, module: nn.Module) -> int:
        number = len(self.outline.names)
        owners, size, named = self.owners, self.size, self.named
        own = needed = buffers = 0
        again: set[int] = set()
        waiting = [(f"{name}." if name else "", module)]
        while waiting:
            start, each = waiting.pop()
            inside = each.__dict__
            for key, tensor in inside["_parameters"].items():
                if tensor is None:
                    continue
                owner = owners.get(id(tensor))
                if owner is None:
                    owners[id(tensor)] = number
                    own += size(start + key if named else "", tensor)
                elif owner != number and id(tensor) not in again:
                    again.add(id(tensor))
                    self.outline.links.append((owner, number))
                    needed += size(start + key if named else "", tensor)
            for key, buffer in inside["_buffers"].items():
                if buffer is not None:
                    buffers += self.buffer(start + key if named else "", buffer)
            if inside["_modules"]:
                waiting += [
                    (f"{start}{key}." if named else "", child)
                    for key, child in reversed(inside["_modules"].items())
                    if child is not None
                ]
        return self.outline.add(name, type(module).__name__, own, buffers, own + needed)

    def buffer(self, name: str, tensor: torch.Tensor) -> int:
        """Return the bytes that a buffer adds to the model: none where another module has it too."""
        if id(tensor) in self.owners:
            return 0
        self.owners[id(tensor)] = -1
        return self.size(name, tensor)


__all__ = ["outline_of"]
