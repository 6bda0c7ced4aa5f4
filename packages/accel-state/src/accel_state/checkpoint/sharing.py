"""Which tensors lie in the same memory, and how to store that memory once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from accel_core.errors import CheckpointError

_WIDEST = 16
"""Bytes of the widest dtype, complex128."""


@dataclass(frozen=True, slots=True)
class View:
    """A tensor inside the memory of another: ``offset`` bytes from its start, strides in elements."""

    of: str
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is written (``carriers``, by name), and what is a view of that.

    ``hidden`` are carriers that nobody gave: memory that no single one of its tensors covers.
    """

    carriers: dict[str, torch.Tensor]
    views: dict[str, View]
    hidden: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Span:
    name: str
    tensor: torch.Tensor
    begin: int
    end: int


def plan(values: Mapping[str, torch.Tensor], where: str) -> Plan:
    """Decide how ``values`` are stored; raise CheckpointError for what is no plain tensor.

    Tensors whose bytes overlap stay overlapping. Tensors that only lie in one storage side by side
    are independent. Each is stored once, under the first name that covers all of the shared memory.
    """
    carriers: dict[str, torch.Tensor] = {}
    spans: dict[torch.device, list[_Span]] = {}
    for name, value in values.items():
        tensor = plain_tensor(name, value, where)
        if tensor.numel() == 0:
            carriers[name] = tensor
            continue
        begin = tensor.data_ptr()
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        end = begin + (reach + 1) * tensor.element_size()
        spans.setdefault(tensor.device, []).append(_Span(name, tensor, begin, end))
    views: dict[str, View] = {}
    hidden: set[str] = set()
    order = {name: place for place, name in enumerate(values)}
    for found in spans.values():
        for cluster in _clusters(found):
            if len(cluster) == 1:
                carriers[cluster[0].name] = cluster[0].tensor
                continue
            cluster.sort(key=lambda span: order[span.name])
            name, carrier, begin = _carrier(cluster, {*values, *hidden}, where)
            carriers[name] = carrier
            if name not in values:
                hidden.add(name)
            views |= {span.name: _view(span, name, begin, where) for span in cluster if span.name != name}
    return Plan(carriers, views, frozenset(hidden))


def plain_tensor(name: Any, value: Any, where: str) -> torch.Tensor:
    """Return the bare values of a tensor; raise CheckpointError when it is no plain one."""
    reason = ""
    if not isinstance(name, str):
        reason = f"its name is a {type(name).__name__}, not a string"
    elif not isinstance(value, torch.Tensor):
        reason = f"it is a {type(value).__name__}, not a tensor"
    elif value.layout is not torch.strided or value.is_quantized:
        reason = f"its layout is {value.layout}{', quantized' if value.is_quantized else ''}; give its parts"
    elif value.is_meta:
        reason = "it is on the meta device and has no values"
    elif hasattr(type(value), "__tensor_flatten__") or (value.numel() and not value.data_ptr()):
        reason = f"it is a {type(value).__name__} whose values lie in other tensors; give those"
    if reason:
        raise CheckpointError(f"{name!r} cannot be stored: {reason}", where=where)
    tensor: torch.Tensor = value.detach().resolve_conj().resolve_neg()
    return tensor


def _clusters(spans: list[_Span]) -> list[list[_Span]]:
    """Return groups of spans that overlap, directly or through others."""
    result: list[list[_Span]] = []
    end = -1
    for span in sorted(spans, key=lambda each: each.begin):
        if span.begin < end:
            result[-1].append(span)
            end = max(end, span.end)
        else:
            result.append([span])
            end = span.end
    return result


def _carrier(cluster: list[_Span], taken: set[str], where: str) -> tuple[str, torch.Tensor, int]:
    """Return name, tensor and first address of what holds the memory of the whole cluster."""
    begin, end = min(span.begin for span in cluster), max(span.end for span in cluster)
    aligned = all((span.begin - begin) % span.tensor.element_size() == 0 for span in cluster)
    for span in cluster:
        if aligned and (span.begin, span.end) == (begin, end) and span.tensor.is_contiguous():
            return span.name, span.tensor, begin
    for span in cluster:
        storage = span.tensor.untyped_storage()
        first = span.begin - int(span.tensor.storage_offset()) * span.tensor.element_size()
        if first <= begin and end <= first + storage.nbytes():
            # Tensors begin at a multiple of their item's size in the storage, so they do so from here.
            begin -= (begin - first) % _WIDEST
            flat = torch.empty(0, dtype=torch.uint8, device=span.tensor.device)
            number = 0
            while f"__shared_{number}__" in taken:
                number += 1
            return f"__shared_{number}__", flat.set_(storage, begin - first, (end - begin,), (1,)), begin
    names = ", ".join(repr(span.name) for span in cluster)
    raise CheckpointError(
        f"{names} overlap in memory, but no storage holds all of them",
        where=where,
        fix="clone the tensors that need not share memory",
    )


def _view(span: _Span, of: str, begin: int, where: str) -> View:
    tensor = span.tensor
    if tensor.numel() * tensor.element_size() > span.end - span.begin:
        raise CheckpointError(
            f"{span.name!r} overlaps with itself (strides {tensor.stride()}) and with {of!r}",
            where=where,
            fix="store it contiguous (.contiguous()), or store only what it was expanded from",
        )
    return View(of, span.begin - begin, tensor.dtype, tuple(tensor.shape), tensor.stride())


__all__ = ["Plan", "View", "plain_tensor", "plan"]
