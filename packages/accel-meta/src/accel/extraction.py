"""``extract_model_from_parallel``: containers, compilation and the wrapped forward, taken off as asked."""

from __future__ import annotations

from torch import nn

from accel_parallel import extract_model
from accel_parallel.inspection import bare
from accel_precision import restore_forward


def extract_model_from_parallel(
    model: nn.Module,
    keep_fp32_wrapper: bool = True,
    keep_torch_compile: bool = True,
    recursive: bool = False,
) -> nn.Module:
    """Return the model out of the containers that distributed training put it into.

    ``keep_fp32_wrapper``: its forward stays in mixed precision; without it the original forward is
    restored, in the model itself. ``keep_torch_compile``: what is compiled stays compiled; without it the
    model and its parts run uncompiled from now on. ``recursive``: containers around parts of the model
    are removed too.
    """
    found = extract_model(model, keep_torch_compile=keep_torch_compile, recursive=recursive)
    if not keep_fp32_wrapper:
        for part in {found, bare(found)}:
            restore_forward(part)
    return found


__all__ = ["extract_model_from_parallel"]
