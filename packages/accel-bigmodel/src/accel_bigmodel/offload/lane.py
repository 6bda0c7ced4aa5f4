"""The order of blocks, and the transfer of the next one while one computes."""

from __future__ import annotations

import torch

STAGING = 512 << 20
"""Bytes of pinned memory that transfers go through, by default."""


class Lane:
    """Move blocks of one model to ``device``; ``limit_bytes`` of pinned memory at most."""

    def __init__(self, device: torch.device, limit_bytes: int = STAGING) -> None:
        self.device = device
        self.limit_bytes = limit_bytes


__all__ = ["STAGING", "Lane"]
