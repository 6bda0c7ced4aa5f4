"""The shortest correct quantizer: int8 with a scale for each row, in plain torch. For tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from accel_core.errors import CapabilityError, CheckpointError


class RowQuantizer:
    """Weights as ``weight`` (int8) and ``weight.scale``; computes in the dtype of its inputs, on the CPU."""

    name = "rows"

    def __init__(self, config: Any = None) -> None:
        self.config = config

    def check(self, device: torch.device) -> None:
        """Refuse everything but CPUs and stand-ins for devices."""
        if device.type not in ("cpu", torch._C._get_privateuse1_backend_name()):
            raise CapabilityError(f"RowQuantizer is for tests, and not for {device}")

    def refusal(self, linear: nn.Linear) -> str:
        """Refuse layers with an odd number of outputs, so that tests can ask for a refusal."""
        return "it has an odd number of outputs" if linear.out_features % 2 else ""

    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return values from -127 to 127, and what they are multiplied with."""
        scale = weight.abs().amax(dim=1, keepdim=True).float() / 127
        values = (weight.float() / scale.clamp(min=1e-30)).round().to(torch.int8)
        return {"weight": values, "weight.scale": scale}

    def stored(
        self, linear: nn.Linear, found: Mapping[str, torch.Tensor], where: str
    ) -> dict[str, torch.Tensor] | None:
        """Return both parts, checked."""
        weight = found.get("weight")
        plain = weight is None or weight.is_floating_point()
        if plain and "weight.scale" not in found:
            return None
        shapes = {"weight": linear.out_features * linear.in_features, "weight.scale": linear.out_features}
        if {name: part.numel() for name, part in found.items()} != shapes:
            raise CheckpointError(f"The parts are {', '.join(found)}, or of other shapes", where=where)
        return dict(found)

    def layer(self, linear: nn.Linear, parts: Mapping[str, torch.Tensor], *, movable: bool) -> nn.Linear:
        """Return the same layer in both cases."""
        return RowLinear(linear, parts)

    def mark(self, model: nn.Module) -> None:
        """Leave a mark."""
        model.is_quantized_by_rows = True  # type: ignore[assignment]


class RowLinear(nn.Linear):
    """A layer with its weight in two parts."""

    def __init__(self, linear: nn.Linear, parts: Mapping[str, torch.Tensor]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(parts["weight"], requires_grad=False)
        self.scale = nn.Parameter(parts["weight.scale"], requires_grad=False)
        self.register_parameter("bias", linear.bias)
        self.saved_as = {"weight": "weight", "scale": "weight.scale"}
        self.train(linear.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute in the dtype of ``x``."""
        return functional.linear(x, (self.weight * self.scale).to(x.dtype), self.bias)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight.scale"] = destination.pop(f"{prefix}scale")


__all__ = ["RowLinear", "RowQuantizer"]
