"""From a model to a plan for its devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from accel_core.errors import ConfigError, Fault

from ..dtypes import AnyDtype, bits_of
from .measured import needs_of_blocks
from .memory import get_max_memory
from .needs import Needs, needs_of_config
from .outline import Outline
from .plan import DevicePlan
from .reasons import plan_of
from .solving import Solution, solve
from .strategies import check_strategy, spread
from .units import memory_size
from .walking import outline_of

_KEPT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What callers may say about a plan; see `plan_device_map`."""

    max_memory: Mapping[int | str, int | str] | None = None
    no_split_module_classes: Sequence[str] | None = None
    dtype: AnyDtype | None = None
    special_dtypes: Mapping[str, AnyDtype] | None = None
    offload_buffers: bool = False
    fallback_allocation: bool = False
    batch_size: int | None = None
    sequence_length: int | None = None
    reserve: int | str = 0


def plan_device_map(
    model: nn.Module,
    strategy: str = "auto",
    *,
    max_memory: Mapping[int | str, int | str] | None = None,
    no_split_module_classes: Sequence[str] | None = None,
    dtype: AnyDtype | None = None,
    special_dtypes: Mapping[str, AnyDtype] | None = None,
    offload_buffers: bool = False,
    fallback_allocation: bool = False,
    batch_size: int | None = None,
    sequence_length: int | None = None,
    reserve: int | str = 0,
) -> DevicePlan:
    """Return where each part of ``model`` goes, and why; ``plan.device_map`` is for `dispatch_model`.

    ``strategy``: ``"auto"``, ``"balanced"``, ``"balanced_low_0"`` or ``"sequential"``. ``batch_size``,
    ``sequence_length``: keep room for the activations and the keys and values of so many tokens (1 of what
    is not given). ``reserve``: keep so many bytes more on every device that runs the model. Memory that
    was measured, not given, is used up to nine tenths when nothing else is reserved. Other options are
    those of `infer_auto_device_map`. Raises UnknownNameError, ConfigError.
    """
    asked = Asked(
        max_memory=max_memory,
        no_split_module_classes=no_split_module_classes,
        dtype=dtype,
        special_dtypes=special_dtypes,
        offload_buffers=offload_buffers,
        fallback_allocation=fallback_allocation,
        batch_size=batch_size,
        sequence_length=sequence_length,
        reserve=reserve,
    )
    solution, notes = solved(model, strategy, asked)
    return plan_of(solution, strategy, notes)


def solved(model: nn.Module, strategy: str, asked: Asked) -> tuple[Solution, tuple[str, ...]]:
    """Return where each part of ``model`` goes, and what was assumed."""
    check_strategy(strategy)
    outline = outline_of(model, asked.no_split_module_classes, asked.dtype, asked.special_dtypes)
    needs = _needs(model, outline, asked)
    outline.caches = dict(needs.caches)
    limits = get_max_memory(asked.max_memory)
    notes = needs.notes
    if asked.max_memory is None and not notes:
        limits = {device: size - size // _KEPT for device, size in limits.items()}
        notes = ("A tenth of the free memory is left for activations: no batch_size or reserve is given.",)
    solution = solve(
        outline,
        limits,
        shares=spread(outline, limits, strategy, workspace=needs.workspace),
        offload_buffers=asked.offload_buffers,
        workspace=needs.workspace,
        look_ahead=asked.fallback_allocation,
    )
    return solution, notes


def _needs(model: nn.Module, outline: Outline, asked: Asked) -> Needs:
    reserve = memory_size(asked.reserve, "reserve")
    if asked.batch_size is None and asked.sequence_length is None:
        return Needs().more(reserve)
    batch = _count("batch_size", asked.batch_size)
    length = _count("sequence_length", asked.sequence_length)
    config = _config(model)
    if config is None:
        return needs_of_blocks(model, outline, batch, length).more(reserve)
    names = [name for name, _ in model.named_modules()]
    return needs_of_config(config, names, outline, batch, length, _bits(model, asked.dtype)).more(reserve)


def _count(name: str, value: int | None) -> int:
    if value is None:
        return 1
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError("device plan", [Fault(name, value, "is no whole number from 1 on")])
    return value


def _config(model: nn.Module) -> Mapping[str, Any] | None:
    """Return the configuration of a model that tells of layers, as libraries keep it beside the modules."""
    config = getattr(model, "config", None)
    if config is None:
        return None
    found = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(found, Mapping):
        found = vars(config) if hasattr(config, "__dict__") else {}
    layered = {"hidden_size", "n_embd", "d_model", "dim", "text_config"}
    if not layered & {key for key, value in found.items() if value}:
        return None
    written = getattr(config, "_attn_implementation", None)
    return {**found, "_attn_implementation": written}


def _bits(model: nn.Module, dtype: AnyDtype | None) -> int:
    """Return the bits of what the model computes; of quantized ones those of their results."""
    own = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
    return max(16, min(own.itemsize * 8, 64 if dtype is None else bits_of(dtype)))


__all__ = ["Asked", "plan_device_map", "solved"]
