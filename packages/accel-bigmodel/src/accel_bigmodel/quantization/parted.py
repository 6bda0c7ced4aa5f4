"""Linear layers whose weight is several plain tensors, and how a cast of them is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import nn

from accel_core.errors import CapabilityError


class PartedLinear(nn.Linear):
    """A linear layer with its weight in parts: parameters that are moved and offloaded like any other.

    ``saved_as``: what each parameter is saved as. ``texts``: small tensors on the CPU, saved as they are.
    A subclass computes. Casts are refused.
    """

    def __init__(
        self,
        linear: nn.Linear,
        parts: Mapping[str, torch.Tensor],
        saved_as: Mapping[str, str],
        texts: Mapping[str, torch.Tensor],
    ) -> None:
        nn.Module.__init__(self)
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        for name, part in parts.items():
            self.register_parameter(name, nn.Parameter(part, requires_grad=False))
        self.register_parameter("bias", linear.bias)
        self.saved_as = dict(saved_as)
        self.texts = dict(texts)
        self.train(linear.training)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        own: dict[str, Any] = {}
        super()._save_to_state_dict(own, "", keep_vars)
        for name, value in own.items():
            if name == "bias" or name in self.saved_as:
                destination[prefix + self.saved_as.get(name, name)] = value
        destination.update({prefix + name: text for name, text in self.texts.items()})

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        errors: list[str] = rest[-1]
        own = {prefix + name: value for name, value in self.named_parameters() if name not in self.saved_as}
        saved = {stored: name for name, stored in self.saved_as.items()}
        for name, value in state_dict.items():
            short = name.removeprefix(prefix)
            if name.startswith(prefix) and short not in self.texts:
                own[prefix + saved.get(short, short)] = value
            elif short in self.texts and not torch.equal(value.cpu(), self.texts[short]):
                errors.append(f"{name} says that the weight was quantized with other settings")
        if self.bias is not None and f"{prefix}bias" in state_dict:
            own[f"{prefix}bias"] = state_dict[f"{prefix}bias"]
        super()._load_from_state_dict(own, prefix, *rest)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        refuse_cast(fn, "a quantized layer")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def refuse_cast(fn: Callable[[torch.Tensor], torch.Tensor], what: str) -> None:
    """Raise CapabilityError if ``fn``, with which ``Module.to`` changes tensors, casts any."""
    for dtype in (torch.float32, torch.float16):
        if fn(torch.empty(0, dtype=dtype)).dtype != dtype:
            raise cast_refused(what)


def cast_refused(what: str) -> CapabilityError:
    """Return the error for a cast of ``what``."""
    return CapabilityError(
        f"The dtype of {what} cannot be changed: its scales and its layers' inputs belong together",
        fix="move it to a device without a dtype; for another dtype, quantize it again with torch_dtype=...",
    )


__all__ = ["PartedLinear", "cast_refused", "refuse_cast"]
