"""Gradients as they stood before a backward, to tell afterwards whether it touched them."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_
from typing import NamedTuple

import torch


class Seen(NamedTuple):
    """The gradients of some parameters, and how often each that is there was changed in place."""

    gradients: list[torch.Tensor | None]
    versions: list[int]

    @classmethod
    def of(cls, parameters: Iterable[torch.Tensor]) -> Seen:
        """Look at the gradients of ``parameters`` now."""
        found = [parameter.grad for parameter in parameters]
        return cls(found, [gradient._version for gradient in found if gradient is not None])

    def differs(self, later: Seen) -> bool:
        """Tell whether any gradient was made, replaced, taken away or changed until ``later``."""
        return self.versions != later.versions or not all(map(is_, self.gradients, later.gradients))


__all__ = ["Seen"]
