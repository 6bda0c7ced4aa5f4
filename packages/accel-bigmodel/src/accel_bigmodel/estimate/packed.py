"""The weights behind the tensors of a file: quantized files hold several numbers in one element."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .bits import BITS, FLOATS
from .shapes import ModelHeaders, TensorShape

# What quantizers store beside weights: GPTQ, AWQ, bitsandbytes, 8-bit floats, MXFP4, compressed-tensors.
_BESIDE = (
    *(".qzeros", ".g_idx", ".scales", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"),
    *(".SCB", ".weight_format", "weight_scale", "weight_scale_inv", "input_scale", "_scales"),
    *("weight_zero_point", "weight_shape", "weight_g_idx", "activation_scale"),
)
# State that is saved and never trained.
_STATE = (
    *("running_mean", "running_var", "num_batches_tracked", "position_ids", "token_type_ids"),
    *("inv_freq", "masked_bias", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "final_logits_bias"),
)


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of a model: ``elements`` numbers in ``shape``.

    ``fixed``: the bytes of one that keeps its type whatever the model is cast to (integers, booleans); None
    otherwise. ``trained``: whether it has a gradient.
    """

    elements: int
    shape: tuple[int, ...]
    fixed: int | None
    trained: bool


def weights(headers: ModelHeaders) -> dict[str, Weight]:
    """Return the weights of a model by name, without what a quantizer stored beside them."""
    bits = packed_bits(headers.config)
    found = {}
    for name, tensor in headers.tensors.items():
        if bits is not None and (name.endswith(_BESIDE) or ".quant_state." in name):
            continue
        found[name] = _weight(name, tensor, bits)
    return found


def _weight(name: str, tensor: TensorShape, bits: int | None) -> Weight:
    state = name.endswith(_STATE)
    if tensor.code in FLOATS:
        return Weight(tensor.elements, tensor.shape, None, not state)
    if bits is not None and len(tensor.shape) > 1 and tensor.code != "BOOL":
        elements = tensor.elements * BITS[tensor.code] // min(bits, BITS[tensor.code])
        return Weight(elements, (elements,), None, trained=True)
    return Weight(tensor.elements, tensor.shape, tensor.bytes, trained=False)


def packed_bits(config: Mapping[str, Any]) -> int | None:
    """Return the bits of a weight in a quantized model's files; None for a model that is not quantized."""
    said = config.get("quantization_config")
    if not isinstance(said, Mapping):
        return None
    for key in ("bits", "w_bit", "num_bits"):
        if type(said.get(key)) is int and said[key] in {1, 2, 3, 4, 5, 6, 8}:
            return int(said[key])
    if said.get("load_in_4bit") or said.get("_load_in_4bit") or said.get("quant_method") == "mxfp4":
        return 4
    groups = said.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        inner = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(inner, Mapping) and inner.get("num_bits") in {2, 3, 4, 8}:
            return int(inner["num_bits"])
    return 8


def quantizer(config: Mapping[str, Any]) -> str:
    """Return what quantized a model, by its configuration."""
    said = config.get("quantization_config")
    name = said.get("quant_method") if isinstance(said, Mapping) else None
    return name if isinstance(name, str) else "a quantizer"


__all__ = ["Weight", "packed_bits", "quantizer", "weights"]
