"""Averaging what ranks trained alone (local SGD, https://arxiv.org/abs/1805.09767)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from accel_core.protocols import Collectives

_BUCKET = 25 * 2**20
"""Bytes that travel together: as much as DDP sends at once by default."""


def average_(model: nn.Module, collectives: Collectives) -> None:
    """Make trainable parameters and buffers of ``model`` the mean over the ranks, in place. Collective.

    Buffers that cannot be averaged (counts, masks) become those of rank 0. Frozen parameters are equal
    already. A tensor that several names share is averaged once.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = list(model.buffers())
    means = [buffer for buffer in buffers if _has_mean(buffer)]
    with torch.no_grad():
        for bucket in _buckets([*trained, *means]):
            flat = collectives.all_reduce(torch.cat([each.reshape(-1) for each in bucket]), op="mean")
            parts = torch.split(flat, [each.numel() for each in bucket])
            for each, part in zip(bucket, parts, strict=True):
                each.copy_(part.view_as(each))
        for buffer in buffers:
            if not _has_mean(buffer):
                buffer.copy_(collectives.broadcast(buffer))


def _has_mean(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _buckets(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield the tensors in groups of one dtype and device and of about 25 MiB."""
    kinds: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        kind = kinds.setdefault((tensor.dtype, tensor.device), [])
        kind.append(tensor)
        if sum(each.numel() for each in kind) * tensor.element_size() >= _BUCKET:
            yield kind.copy()
            kind.clear()
    yield from (kind for kind in kinds.values() if kind)


__all__ = ["average_"]
