"""Floating outputs back in fp32: losses and metrics computed from them lose nothing to half precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import torch

from accel_core.nested import leaves, map_nested

_HALF = (torch.float16, torch.bfloat16)


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in _HALF


def _to_float(value: Any) -> Any:
    return value.float() if _is_half(value) else value


def convert_to_fp32(tensor: Any) -> Any:
    """Return ``tensor`` with every fp16 and bf16 tensor in it as fp32.

    It may be a tensor or lists, tuples, named tuples and mappings of them; all else is passed
    through. What holds no half-precision tensor comes back as the same object.
    """
    if isinstance(tensor, torch.Tensor):
        return _to_float(tensor)
    if any(_is_half(leaf) for _, leaf in leaves(tensor)):
        return map_nested(_to_float, tensor)
    return tensor


class Fp32Outputs:
    """A function whose floating outputs are fp32; it can be pickled and copied like the function itself."""

    def __init__(self, function: Callable[..., Any]) -> None:
        update_wrapper(self, function)
        self.__wrapped__ = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function and return its outputs in fp32."""
        return convert_to_fp32(self.__wrapped__(*args, **kwargs))


def convert_outputs_to_fp32(model_forward: Callable[..., Any]) -> Fp32Outputs:
    """Return ``model_forward`` with fp16 and bf16 outputs made fp32; ``__wrapped__`` is the original."""
    return Fp32Outputs(model_forward)


__all__ = ["Fp32Outputs", "convert_outputs_to_fp32", "convert_to_fp32"]
