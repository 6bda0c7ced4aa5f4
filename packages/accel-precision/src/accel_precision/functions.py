"""The documented helper functions around mixed precision, usable without any set-up."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from accel_core.errors import UnknownNameError

from .scaler import GradScaler

if TYPE_CHECKING:
    from accel_core.config import AutocastKwargs

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_SCALERS = {"FSDP": ("torch.distributed.fsdp.sharded_grad_scaler", "ShardedGradScaler")}
"""Scalers for ways of sharing a model in which an overflow is seen by one rank alone."""


def _default_device() -> torch.device:
    # current_accelerator() is what torch was built for; whether this machine has one is another question.
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def get_grad_scaler(
    distributed_type: str | None = None, *, device: torch.device | None = None, **kwargs: Any
) -> torch.amp.GradScaler:
    """Return a gradient scaler for ``distributed_type`` (a label such as ``"FSDP"``).

    ``device``: where the loss lives, by default the machine's accelerator or the CPU. ``kwargs`` are
    those of ``torch.amp.GradScaler``.
    """
    kind = (device or _default_device()).type
    special = _SCALERS.get(str(distributed_type))
    if special is None:
        return GradScaler(kind, **kwargs)
    module, name = special
    scaler: torch.amp.GradScaler = getattr(import_module(module), name)(kind, **kwargs)
    return scaler


def get_mixed_precision_context_manager(
    native_amp: bool = False,
    autocast_kwargs: AutocastKwargs | None = None,
    *,
    mixed_precision: str | None = None,
    device: torch.device | None = None,
) -> AbstractContextManager[None]:
    """Return the context in which a model computes in mixed precision; an empty one unless ``native_amp``.

    ``mixed_precision``: ``"fp16"`` or ``"bf16"``, by default torch's choice for the device.
    ``device``: by default the machine's accelerator or the CPU. Raises UnknownNameError for other
    precisions.
    """
    if not native_amp or mixed_precision == "no":
        return nullcontext()
    if mixed_precision is not None and mixed_precision not in _DTYPES:
        raise UnknownNameError("precision", str(mixed_precision), _DTYPES)
    return torch.autocast(
        (device or _default_device()).type,
        None if mixed_precision is None else _DTYPES[mixed_precision],
        enabled=True if autocast_kwargs is None else autocast_kwargs.enabled,
        cache_enabled=None if autocast_kwargs is None else autocast_kwargs.cache_enabled,
    )


__all__ = ["get_grad_scaler", "get_mixed_precision_context_manager"]
