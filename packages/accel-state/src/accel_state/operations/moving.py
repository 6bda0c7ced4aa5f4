"""Move nested containers of tensors to a device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from accel_core.moving import move


def send_to_device(
    tensor: Any,
    device: torch.device | str | int,
    non_blocking: bool = False,
    skip_keys: str | Iterable[str] | None = None,
) -> Any:
    """Return ``tensor`` (a tensor or any nesting of them) on ``device``; containers keep their classes.

    Whatever else has a ``to`` method is moved by it, everything else is passed through, and so are
    the values under the mapping keys ``skip_keys``. A tensor that is there already is not copied.
    """
    target = device if type(device) is torch.device else torch.device(device)
    skipped = (skip_keys,) if isinstance(skip_keys, str) else skip_keys or ()
    return move(tensor, target, non_blocking=non_blocking, skip_keys=frozenset(skipped))


__all__ = ["send_to_device"]
