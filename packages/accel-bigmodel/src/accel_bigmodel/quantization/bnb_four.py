"""The 4-bit layers of bitsandbytes, saved without loss, and one that can be offloaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

import bitsandbytes as bnb  # type: ignore[import-not-found, import-untyped, unused-ignore]
import torch
from bitsandbytes import functional  # type: ignore[import-not-found, import-untyped, unused-ignore]
from bitsandbytes.utils import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    pack_dict_to_tensor,
)
from torch import nn

from accel_core.plain_json import parse

from .bnb_layers import Kind, Parts
from .config import BnbQuantizationConfig
from .formats import BNB_STATE, damaged, expect, other, shape_of
from .parted import PartedLinear, refuse_cast

BLOCK = 64
"""Values that share a scale: what bitsandbytes takes when it is not told."""
_NESTED_BLOCK = 256
_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_DTYPES = ("float32", "float16", "bfloat16")
_MOST_TEXT = 10_000


class FourBits(Kind):
    """fp4 or nf4 with a scale for each block, and scales quantized in their turn if so asked for."""

    def __init__(self, config: BnbQuantizationConfig) -> None:
        self.type = config.bnb_4bit_quant_type
        self.nested = config.bnb_4bit_use_double_quant
        self.compute = config.bnb_4bit_compute_dtype
        self.text = f"4 bits of bitsandbytes, {self.type}"

    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return two values a byte, their scales, what these are quantized with, and a text with the rest."""
        if weight.device.type == "meta":
            return self._sizes(weight)
        values, state = functional.quantize_4bit(
            weight.contiguous(), blocksize=BLOCK, compress_statistics=self.nested, quant_type=self.type
        )
        return {"weight": values, **_under_weight(state.as_dict(packed=True))}

    def _sizes(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return parts without data. bitsandbytes would keep a table without data for good, if asked."""
        blocks = -(-weight.numel() // BLOCK)

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        parts = {
            "weight": empty(-(-weight.numel() // 2), 1, dtype=torch.uint8),
            "weight.absmax": empty(blocks, dtype=torch.uint8 if self.nested else torch.float32),
            "weight.quant_map": empty(16),
        }
        if self.nested:
            parts["weight.nested_absmax"] = empty(-(-blocks // _NESTED_BLOCK))
            parts["weight.nested_quant_map"] = empty(256)
        # The mean of the scales is in the text, and unknown.
        text = {"blocksize": BLOCK, "shape": tuple(weight.shape), "dtype": str(weight.dtype)[6:]}
        text |= {"nested_blocksize": _NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": 0.0}
        return {**parts, BNB_STATE + self.type: pack_dict_to_tensor({"quant_type": self.type, **text})}

    def stored(self, linear: nn.Linear, found: Parts, where: str) -> dict[str, torch.Tensor]:
        """Return the parts of what ``state_dict`` of Linear4bit gave."""
        parts = dict(found)
        nested = "weight.nested_absmax" in parts
        state = _read_state(parts.get(BNB_STATE + self.type), where, nested=nested)
        if nested != self.nested:
            doubly = ("with", "without") if nested else ("without", "with")
            raise other(f"{doubly[0]} double quantization", f"{doubly[1]} it", where)
        block, count = state["blocksize"], math.prod(shape_of(linear))
        if state.get("quant_type") != self.type or tuple(state["shape"]) != shape_of(linear):
            raise damaged(f"the state is of {state.get('quant_type')} and shape {state['shape']}", where)
        blocks = -(-count // block)
        weight = parts.get("weight")
        # FSDP wants other dtypes than bytes; bitsandbytes writes what it was told to pretend.
        if weight is not None and weight.is_contiguous():
            parts["weight"] = weight.view(torch.uint8).view(-1, 1) if weight.numel() else weight
        expect(parts.get("weight"), "weight", torch.uint8, (-(-count // 2), 1), where)
        scales = torch.uint8 if nested else torch.float32
        expect(parts.get("weight.absmax"), "weight.absmax", scales, (blocks,), where)
        expect(parts.get("weight.quant_map"), "weight.quant_map", torch.float32, (16,), where)
        wanted = {"weight", "weight.absmax", "weight.quant_map", BNB_STATE + self.type}
        if nested:
            outer = -(-blocks // _NESTED_BLOCK)
            expect(parts["weight.nested_absmax"], "weight.nested_absmax", torch.float32, (outer,), where)
            expect(
                parts.get("weight.nested_quant_map"), "weight.nested_quant_map", torch.float32, (256,), where
            )
            wanted |= {"weight.nested_absmax", "weight.nested_quant_map"}
        if set(parts) != wanted:
            raise damaged(f"nothing has a use for {', '.join(sorted(set(parts) - wanted))}", where)
        return parts

    def fixed(self, linear: nn.Linear, parts: Parts) -> nn.Linear:
        """Return a Linear4bit."""
        layer: Any = Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=self.compute,
            compress_statistics=self.nested,
            quant_type=self.type,
            device="meta",
        )
        device = parts["weight"].device
        layer.weight = bnb.nn.Params4bit.from_prequantized(
            data=parts["weight"],
            quantized_stats={name: part for name, part in parts.items() if name != "weight"},
            device=device,
            module=layer,
        )
        layer.bias = linear.bias
        # What the fast kernel for CPUs cannot lay out, it ends with an assertion.
        fast = linear.out_features % 32 == 0 and linear.in_features % layer.weight.blocksize == 0
        layer.support_avx512bf16_for_cpu = layer.support_avx512bf16_for_cpu and fast
        made: nn.Linear = layer.train(linear.training)
        return made

    def movable(self, linear: nn.Linear, parts: Parts) -> PartedLinear:
        """Return a layer with the values and scales as parameters."""
        return _Parted4bit(linear, parts, self.compute, BNB_STATE + self.type)


def _under_weight(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"weight.{name}": part for name, part in state.items()}


def _read_state(text: torch.Tensor | None, where: str, *, nested: bool) -> dict[str, Any]:
    """Return what is no tensor of the state of a weight, checked."""
    if text is None or text.dtype != torch.uint8 or text.numel() > _MOST_TEXT:
        raise damaged("the text of the quantization's state is missing", where)
    state = parse(bytes(text.flatten().tolist()), where)
    allowed: dict[str, Collection[Any]] = {"blocksize": _BLOCKS, "dtype": _DTYPES}
    if nested:
        allowed |= {"nested_blocksize": (_NESTED_BLOCK,), "nested_dtype": ("float32",)}
    if not isinstance(state, dict) or not isinstance(state.get("shape"), list):
        raise damaged("the text of the quantization's state is none", where)
    for key, values in allowed.items():
        if state.get(key) not in values:
            raise damaged(f"{key} is {str(state.get(key))[:40]}", where)
    if nested and not isinstance(state.get("nested_offset"), float):
        raise damaged(f"nested_offset is {str(state.get('nested_offset'))[:40]}", where)
    return state


class Linear4bit(bnb.nn.Linear4bit):  # type: ignore[misc]
    """bitsandbytes' own layer, with weights that can be read, saved, moved and trained through at any time.

    On CPUs with AVX-512 BF16, the first forward lays the weight out anew and rounds its scales, for a faster
    kernel; what reads, saves or differentiates it afterwards would be wrong. Here the exact scales are kept,
    and the weight is as it was for whoever asks for it.
    """

    _kept: tuple[Any, ...] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute, by the fast kernel where there is one and nobody wants gradients."""
        # Not by its name, for which it would be laid out as it was.
        weight = self._parameters["weight"]
        state = weight.quant_state
        if state is None:
            return super().forward(x)  # type: ignore[no-any-return]
        if _packed(state):
            if not (self.training or x.requires_grad):
                return self._fast(x, weight, state)
            self._unpack()
        exact = (state.absmax, state.offset, state.state2, state.nested)
        result: torch.Tensor = super().forward(x)
        if _packed(state):
            self._kept = exact
        return result

    def _fast(self, x: torch.Tensor, weight: torch.Tensor, state: Any) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        result = bnb.matmul_4bit(x.to(self.compute_dtype), weight, bias=bias, quant_state=state)
        return result.to(x.dtype)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            self._unpack()
        return super().__getattr__(name)

    def _unpack(self) -> None:
        weight = self.__dict__["_parameters"].get("weight")
        state = getattr(weight, "quant_state", None)
        # While a forward lays it out, nothing is kept yet.
        if state is None or self._kept is None or not _packed(state):
            return
        # Else scales would be quantized again.
        state.original_nested = False
        weight.data, _ = functional._convert_weight_packed_for_cpu_inverse(weight.data, state)
        state.absmax, state.offset, state.state2, state.nested = self._kept
        self._kept = None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._unpack()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        refuse_cast(fn, "a quantized layer")
        self._unpack()
        super()._apply(fn, recurse)
        return self


def _packed(state: Any) -> bool:
    return bool(getattr(state, "packing_format_for_cpu", False))


class _Parted4bit(PartedLinear):
    """Plain parameters: ``weight`` in bytes, ``absmax``, ``quant_map``, and three more for nested scales."""

    absmax: torch.Tensor
    quant_map: torch.Tensor
    nested_absmax: torch.Tensor
    nested_quant_map: torch.Tensor
    nested_offset: torch.Tensor

    def __init__(self, linear: nn.Linear, parts: Parts, compute: Any, text: str) -> None:
        # Always on the CPU: it is read here, once.
        nested = "weight.nested_absmax" in parts
        state = _read_state(parts[text].cpu(), text, nested=nested)
        own = {name.removeprefix("weight."): part for name, part in parts.items() if name != text}
        names = {name: "weight" if name == "weight" else f"weight.{name}" for name in own}
        if nested:
            offset = torch.tensor(float(state["nested_offset"]))
            own["nested_offset"] = offset.to(parts["weight"].device)
        super().__init__(linear, own, names, {text: parts[text].cpu()})
        self.nested = nested
        self.compute = compute
        self.blocksize: int = state["blocksize"]
        self.quant_type: str = state["quant_type"]
        self.quant_dtype: torch.dtype = getattr(torch, state["dtype"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute as Linear4bit does, with whatever the parameters are now."""
        outer = None
        if self.nested:
            outer = functional.QuantState(
                absmax=self.nested_absmax.data,
                code=self.nested_quant_map.data,
                blocksize=_NESTED_BLOCK,
                dtype=torch.float32,
            )
        state = functional.QuantState(
            absmax=self.absmax.data,
            shape=torch.Size(shape_of(self)),
            code=self.quant_map.data,
            blocksize=self.blocksize,
            quant_type=self.quant_type,
            dtype=self.quant_dtype,
            offset=self.nested_offset.data if self.nested else None,
            state2=outer,
        )
        bias = None if self.bias is None else self.bias.to(self.compute)
        result = bnb.matmul_4bit(x.to(self.compute), self.weight.data, bias=bias, quant_state=state)
        return result.to(x.dtype)  # type: ignore[no-any-return]


__all__ = ["FourBits", "Linear4bit"]
