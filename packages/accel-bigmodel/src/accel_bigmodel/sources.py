"""Offloaded weights in two layers: what a model brought with it, in front of what lies elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch

from .offload.loader import find_holder


class Layered(Mapping[str, torch.Tensor]):
    """The tensors of ``own``, and those of ``rest`` that are not in it."""

    def __init__(self, own: dict[str, torch.Tensor], rest: Mapping[str, torch.Tensor]) -> None:
        self.own = own
        self.rest = rest

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.own[key] if key in self.own else self.rest[key]

    def __iter__(self) -> Iterator[str]:
        return chain(self.own, (key for key in self.rest if key not in self.own))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        return key in self.own or key in self.rest

    def __getattr__(self, name: str) -> Any:
        # The index and the folder of weights on disk, which others ask a hook for.
        if name.startswith("_") or name in {"own", "rest"}:
            raise AttributeError(name)
        return getattr(self.rest, name)

    def holder(self, key: str) -> tuple[dict[str, torch.Tensor], str] | None:
        """Return the dict and the key that a value is kept under; None for what lies in files."""
        return (self.own, key) if key in self.own else find_holder(self.rest, key)

    def will_need(self, keys: Iterable[str]) -> None:
        """Ask the system to read the pages of these tensors ahead. Never fails."""
        ask = getattr(self.rest, "will_need", None)
        if ask is not None:
            ask([key for key in keys if key not in self.own])


__all__ = ["Layered"]
