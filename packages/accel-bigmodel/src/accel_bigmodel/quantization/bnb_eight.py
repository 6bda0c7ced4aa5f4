"""The 8-bit layers of bitsandbytes, and one that can be offloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import bitsandbytes as bnb  # type: ignore[import-not-found, import-untyped, unused-ignore]
import torch
from bitsandbytes import functional  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import nn

from .bnb_layers import Kind, Parts
from .config import BnbQuantizationConfig
from .formats import damaged, expect, shape_of
from .parted import PartedLinear, refuse_cast


class EightBits(Kind):
    """int8 with a scale for each row."""

    text = "8 bits of bitsandbytes"

    def __init__(self, config: BnbQuantizationConfig) -> None:
        self.threshold = config.llm_int8_threshold

    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return int8 values, and the largest of each row."""
        values, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16).contiguous())
        return {"weight": values, "SCB": scales}

    def stored(self, linear: nn.Linear, found: Parts, where: str) -> dict[str, torch.Tensor]:
        """Return the parts of what ``state_dict`` of Linear8bitLt gave."""
        expect(found.get("weight"), "weight", torch.int8, shape_of(linear), where)
        expect(found.get("SCB"), "SCB", torch.float32, (linear.out_features,), where)
        layout = found.get("weight_format")
        if layout is not None and (layout.numel() != 1 or int(layout) != 0):
            raise damaged("'weight_format' says a layout of old versions of bitsandbytes", where)
        left = set(found) - {"weight", "SCB", "weight_format"}
        if left:
            raise damaged(f"nothing has a use for {', '.join(sorted(left))}", where)
        return {"weight": found["weight"], "SCB": found["SCB"]}

    def fixed(self, linear: nn.Linear, parts: Parts) -> nn.Linear:
        """Return a Linear8bitLt."""
        layer: nn.Linear = Linear8bitLt(
            linear.in_features,
            linear.out_features,
            bias=False,
            has_fp16_weights=False,
            threshold=self.threshold,
            device="meta",
        )
        values, scales = parts["weight"], parts["SCB"]
        layer.weight = bnb.nn.Int8Params(
            values, requires_grad=False, has_fp16_weights=False, CB=values, SCB=scales
        )
        layer.bias = linear.bias
        return layer.train(linear.training)

    def movable(self, linear: nn.Linear, parts: Parts) -> PartedLinear:
        """Return a layer with ``weight`` and ``SCB`` as parameters."""
        return _Parted8bit(linear, parts, self.threshold)


class Linear8bitLt(bnb.nn.Linear8bitLt):  # type: ignore[misc]
    """bitsandbytes' own layer, casts refused."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        refuse_cast(fn, "a quantized layer")
        super()._apply(fn, recurse)
        return self


class _Parted8bit(PartedLinear):
    """Plain parameters ``weight`` and ``SCB``."""

    SCB: torch.Tensor

    def __init__(self, linear: nn.Linear, parts: Parts, threshold: float) -> None:
        layout = {"weight_format": torch.tensor(0, dtype=torch.uint8)}
        super().__init__(linear, parts, {"weight": "weight", "SCB": "SCB"}, layout)
        self.threshold = threshold

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute as Linear8bitLt does, with whatever the parameters are now."""
        # One for each call, because several may be under way.
        state = bnb.MatmulLtState()
        state.threshold = self.threshold
        state.use_pool = self.threshold > 0.0
        state.has_fp16_weights = False
        state.is_training = self.training
        state.CB, state.SCB = self.weight.data, self.SCB.data
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return bnb.matmul(x, self.weight, bias=bias, state=state)  # type: ignore[no-any-return]


__all__ = ["EightBits", "Linear8bitLt"]
