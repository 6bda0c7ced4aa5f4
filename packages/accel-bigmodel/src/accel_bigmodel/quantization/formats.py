"""How the files of quantized weights are told apart, whatever wrote them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from accel_core.errors import CheckpointError

BNB_STATE = "weight.quant_state.bitsandbytes__"
TORCHAO_STATE = "weight.torchao"


def kind(found: Mapping[str, torch.Tensor]) -> str:
    """Return what the tensors of a layer are by their names and dtypes; nothing for a plain weight."""
    if "SCB" in found:
        return "8 bits of bitsandbytes"
    for name in found:
        if name.startswith(BNB_STATE):
            return f"4 bits of bitsandbytes, {name.removeprefix(BNB_STATE)}"
    if TORCHAO_STATE in found:
        return "torchao"
    if "weight" in found and not found["weight"].is_floating_point():
        return f"{found['weight'].dtype} without a scale"
    return ""


def other(found: str, wanted: str, where: str) -> CheckpointError:
    """Return the error for weights that were quantized in another way than is asked for."""
    return CheckpointError(
        f"The weights were quantized before, in another way: they are {found}, and the settings say {wanted}",
        where=where,
        fix="load them with the settings that they were made with, or quantize the original weights",
    )


def damaged(what: str, where: str) -> CheckpointError:
    """Return the error for quantized weights that do not fit together."""
    return CheckpointError(
        f"Quantized weights do not fit together: {what}",
        where=where,
        fix="save or download them again; they belong to another model, or are damaged",
    )


def expect(
    part: torch.Tensor | None, name: str, dtype: torch.dtype, shape: tuple[int, ...], where: str
) -> None:
    """Raise CheckpointError unless a part is there, of this dtype and shape."""
    if part is None:
        raise damaged(f"{name!r} is missing", where)
    if part.dtype != dtype or tuple(part.shape) != shape:
        raise damaged(
            f"{name!r} is {part.dtype} of shape {tuple(part.shape)}, not {dtype} of shape {shape}", where
        )


def shape_of(linear: nn.Linear) -> tuple[int, int]:
    """Return the shape of the weight of a layer, which may have none of this name."""
    return (linear.out_features, linear.in_features)


__all__ = ["BNB_STATE", "TORCHAO_STATE", "damaged", "expect", "kind", "other", "shape_of"]
