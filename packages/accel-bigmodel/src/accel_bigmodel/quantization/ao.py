"""Linear layers with weights of torchao, as int8 or int4. Nothing is imported before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import nn

from accel_core.errors import NotInstalledError

from .config import TorchaoQuantizationConfig
from .formats import TORCHAO_STATE, kind, other
from .trial import check_by_trial

if TYPE_CHECKING:
    from .ao_layers import Kind


class TorchaoQuantizer:
    """What `TorchaoQuantizationConfig` asks for. Raises NotInstalledError without torchao."""

    name = "torchao"

    def __init__(self, config: TorchaoQuantizationConfig) -> None:
        if find_spec("torchao") is None:
            raise NotInstalledError("quantizer", self.name, "torchao")
        from . import ao_layers

        self.config = config
        self._kind: Kind = ao_layers.Kind(config)

    def check(self, device: torch.device) -> None:
        """Raise CapabilityError with the reason if layers cannot compute on ``device``."""
        # What runs where is decided deep inside of torchao and of packages that it calls: only trying tells.
        check_by_trial(
            self,
            device,
            dtype=self._kind.dtype,
            width=256,
            text=f"{self.config.weights} weights",
            fix=lambda reason: _fix(self.config, reason),
        )

    def refusal(self, linear: nn.Linear) -> str:
        """Return why ``linear`` cannot be quantized; nothing if it can."""
        return self._kind.refusal(linear)

    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parts of ``weight`` on its device."""
        return self._kind.quantize(weight)

    def stored(
        self, linear: nn.Linear, found: Mapping[str, torch.Tensor], where: str
    ) -> dict[str, torch.Tensor] | None:
        """Return the parts among what a checkpoint has for a layer; None for a plain weight."""
        text = kind(found)
        if not text:
            return None
        if TORCHAO_STATE not in found:
            raise other(text, f"{self.config.weights} of torchao", where)
        return self._kind.stored(linear, found, where)

    def layer(self, linear: nn.Linear, parts: Mapping[str, torch.Tensor], *, movable: bool) -> nn.Linear:
        """Return a layer whose weight is a tensor of torchao; when ``movable``, made anew from its parts."""
        return self._kind.movable(linear, parts) if movable else self._kind.fixed(linear, parts)

    def mark(self, model: nn.Module) -> None:
        """Set nothing: a weight of torchao is known by its class."""


def _fix(config: TorchaoQuantizationConfig, reason: str) -> str:
    if "mslk" in reason:
        return "pip install mslk, which needs a GPU, or use weights='int8'"
    return "use another device" + (", or weights='int8'" if config.weights == "int4" else "")


__all__ = ["TorchaoQuantizer"]
