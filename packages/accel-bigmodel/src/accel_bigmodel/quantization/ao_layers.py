"""Layers with weights of torchao: a tensor in parts, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
import torchao.quantization as ao  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import nn
from torch.nn import functional

from accel_core.plain_json import parse

from ..guard import offloading_hook
from .config import TorchaoQuantizationConfig
from .formats import TORCHAO_STATE, damaged, expect, other, shape_of
from .parted import PartedLinear, refuse_cast

Parts = Mapping[str, torch.Tensor]
_CLASSES = ("Int8Tensor", "Int4Tensor", "Int4TilePackedTo4dTensor")
"""What a file may name: classes of torchao that hold a weight."""


class Kind:
    """int8 or int4, as the settings say."""

    def __init__(self, config: TorchaoQuantizationConfig) -> None:
        assert isinstance(config.torch_dtype, torch.dtype)
        self.dtype = config.torch_dtype
        self.weights = config.weights
        self.group = config.group_size
        self.packing = config.int4_packing

    def refusal(self, linear: nn.Linear) -> str:
        """Return why a layer cannot be quantized; nothing if it can."""
        if not (linear.in_features and linear.out_features):
            return "it has no weights"
        if self.weights == "int4" and linear.in_features % self.group:
            return f"its {linear.in_features} inputs are no multiple of group_size={self.group}"
        return ""

    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the tensors inside of torchao's, and a text with the rest."""
        rows, columns = weight.shape
        if weight.device.type == "meta" and self.weights == "int4":
            # Its kernels know no meta device, and this is asked for sizes only.
            scales = torch.empty(columns // self.group, rows, 2, dtype=self.dtype, device="meta")
            values = torch.empty(rows, columns // 2, dtype=torch.uint8, device="meta")
            return {"weight.qdata": values, "weight.scale": scales, TORCHAO_STATE: _encode("Int4Tensor", {})}
        linear = nn.Linear(columns, rows, bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        ao.quantize_(linear, self._settings())
        return _flatten(linear.weight)

    def _settings(self) -> Any:
        if self.weights == "int8":
            return ao.Int8WeightOnlyConfig(set_inductor_config=False)
        return ao.Int4WeightOnlyConfig(
            group_size=self.group, int4_packing_format=self.packing, set_inductor_config=False
        )

    def stored(self, linear: nn.Linear, found: Parts, where: str) -> dict[str, torch.Tensor]:
        """Return the parts of what ``state_dict`` of one of these layers gave."""
        name, settings = _decode(found[TORCHAO_STATE], where)
        bits = "int8" if name == "Int8Tensor" else "int4"
        if bits != self.weights:
            raise other(f"{bits} of torchao", f"{self.weights}", where)
        parts = dict(found)
        if bits == "int8":
            expect(parts.get("weight.qdata"), "weight.qdata", torch.int8, shape_of(linear), where)
            rows = (linear.out_features, 1)
            scale = parts.get("weight.scale")
            kind = scale.dtype if scale is not None and scale.is_floating_point() else torch.float32
            expect(scale, "weight.scale", kind, rows, where)
            if "weight.zero_point" in parts:
                expect(parts["weight.zero_point"], "weight.zero_point", torch.int8, rows, where)
            wanted = {TORCHAO_STATE, "weight.qdata", "weight.scale", "weight.zero_point"}
            if not parts.keys() <= wanted:
                raise damaged(f"nothing has a use for {', '.join(sorted(parts.keys() - wanted))}", where)
        try:
            shape = tuple(_unflatten(parts, name, settings, shape_of(linear)).shape)
        # Whatever a class raises for parts that are not its own.
        except Exception as error:
            raise damaged(f"torchao says: {str(error)[:200]}", where) from error
        if shape != shape_of(linear):
            raise damaged(f"the weight has shape {shape}, not {shape_of(linear)}", where)
        return parts

    def fixed(self, linear: nn.Linear, parts: Parts) -> nn.Linear:
        """Return a linear layer whose weight is a tensor of torchao."""
        return TorchaoLinear(linear, parts)

    def movable(self, linear: nn.Linear, parts: Parts) -> PartedLinear:
        """Return a layer with plain parameters, of which the weight is made when it is used."""
        return _Parted(linear, parts)


class TorchaoLinear(nn.Linear):
    """A linear layer whose weight is a tensor of torchao, saved as plain tensors; casts refused."""

    def __init__(self, linear: nn.Linear, parts: Parts) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        name, settings = _decode(parts[TORCHAO_STATE], TORCHAO_STATE)
        weight = _unflatten(parts, name, settings, shape_of(linear))
        self.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        self.register_parameter("bias", linear.bias)
        self.train(linear.training)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        weight: torch.Tensor = self.weight
        hook = offloading_hook(self)
        if hook is not None and weight.device.type == "meta":
            # Offloaded after it was quantized: its parts are not by themselves what the hook keeps.
            weight = hook.kept("weight")
        destination.update({prefix + name: part for name, part in _flatten(weight).items()})
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        own = {name: value for name, value in state_dict.items() if name.startswith(prefix)}
        found = {
            name.removeprefix(prefix): own.pop(name)
            for name in list(own)
            if name.startswith(f"{prefix}weight.")
        }
        if TORCHAO_STATE in found:
            name, settings = _decode(found[TORCHAO_STATE], prefix + TORCHAO_STATE)
            own[f"{prefix}weight"] = _unflatten(found, name, settings, shape_of(self))
        super()._load_from_state_dict(own, prefix, *rest)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        refuse_cast(fn, "a quantized layer")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class _Parted(PartedLinear):
    """Plain parameters ``qdata``, ``scale`` and what else the class has."""

    def __init__(self, linear: nn.Linear, parts: Parts) -> None:
        self.stored_class, self.settings = _decode(parts[TORCHAO_STATE], TORCHAO_STATE)
        own = {name.removeprefix("weight."): part for name, part in parts.items() if name != TORCHAO_STATE}
        texts = {TORCHAO_STATE: parts[TORCHAO_STATE].cpu()}
        super().__init__(linear, own, {name: f"weight.{name}" for name in own}, texts)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Return torchao's tensor over the parameters as they are now."""
        parts = {stored: getattr(self, name).data for name, stored in self.saved_as.items()}
        return _unflatten(parts, self.stored_class, self.settings, shape_of(self))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute with whatever the parameters are now."""
        return functional.linear(x, self.weight, self.bias)


def _flatten(weight: Any) -> dict[str, torch.Tensor]:
    names, settings = weight.__tensor_flatten__()
    parts = {f"weight.{name}": getattr(weight, name).detach() for name in names}
    return {**parts, TORCHAO_STATE: _encode(type(weight.data).__name__, settings)}


def _unflatten(parts: Parts, name: str, settings: Mapping[str, Any], shape: tuple[int, int]) -> torch.Tensor:
    tensors = {
        key.removeprefix("weight."): part for key, part in parts.items() if key not in ("bias", TORCHAO_STATE)
    }
    made: torch.Tensor = getattr(ao, name).__tensor_unflatten__(tensors, dict(settings), shape, (shape[1], 1))
    return made


def _encode(name: str, settings: Mapping[str, Any]) -> torch.Tensor:
    """Return a text as bytes: the class, and what is no tensor in it."""
    plain = {key: _plain(value) for key, value in settings.items()}
    return torch.tensor(list(json.dumps({"class": name, "settings": plain}).encode()), dtype=torch.uint8)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    return list(value) if isinstance(value, (tuple, torch.Size)) else value


def _decode(text: torch.Tensor, where: str) -> tuple[str, dict[str, Any]]:
    """Return what `_encode` wrote, checked."""
    short = text.dtype == torch.uint8 and text.numel() < 10_000
    content = parse(bytes(text.flatten().tolist()), where) if short else None
    if not isinstance(content, dict) or content.keys() != {"class", "settings"}:
        raise damaged("the text of the weight's class is wrong", where)
    name, settings = content["class"], content["settings"]
    if name not in _CLASSES or not isinstance(settings, dict):
        raise damaged(
            f"the weight is of class {str(name)[:60]!r}, which is none of {', '.join(_CLASSES)}", where
        )
    return name, {key: _rich(value, where) for key, value in settings.items()}


def _rich(value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        return value
    found = getattr(torch, str(value.get("dtype")), None)
    if not isinstance(found, torch.dtype):
        raise damaged(f"{str(value)[:60]} is no dtype", where)
    return found


__all__ = ["Kind", "TorchaoLinear"]
