"""What modules keep beside their tensors, as they themselves pack it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .audit import Audit


def load_extras(found: Audit, weights: Mapping[str, torch.Tensor]) -> None:
    """Give each module its own, from ``weights``."""
    for module, name in found.extras:
        state: Any = weights[name].clone()
        module.set_extra_state(state)


__all__ = ["load_extras"]
