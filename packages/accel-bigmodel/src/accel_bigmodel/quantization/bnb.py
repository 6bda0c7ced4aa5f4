"""Linear layers quantized by bitsandbytes, in 8 or 4 bits. Nothing is imported before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import nn

from accel_core.errors import NotInstalledError

from .config import BnbQuantizationConfig
from .formats import kind, other
from .trial import check_by_trial

if TYPE_CHECKING:
    from .bnb_layers import Kind


_FIX = "use another device, or install a version of bitsandbytes with a backend for this one"


class BnbQuantizer:
    """What `BnbQuantizationConfig` asks for. Raises NotInstalledError without bitsandbytes."""

    name = "bitsandbytes"

    def __init__(self, config: BnbQuantizationConfig) -> None:
        if find_spec("bitsandbytes") is None:
            raise NotInstalledError("quantizer", self.name, "bitsandbytes")
        self.config = config
        self._kind = _kind(config)

    def check(self, device: torch.device) -> None:
        """Raise CapabilityError with the reason if layers cannot compute on ``device``."""
        # Backends are packages that bitsandbytes finds by itself: only trying tells.
        dtype = self.config.torch_dtype
        assert isinstance(dtype, torch.dtype)
        check_by_trial(
            self,
            device,
            dtype=dtype,
            width=64,
            text=self._kind.text,
            fix=lambda _: _FIX,
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
        if text != self._kind.text:
            raise other(text, self._kind.text, where)
        return self._kind.stored(linear, found, where)

    def layer(self, linear: nn.Linear, parts: Mapping[str, torch.Tensor], *, movable: bool) -> nn.Linear:
        """Return a layer of bitsandbytes with ``parts``; when ``movable``, one of ours that calls it."""
        return self._kind.movable(linear, parts) if movable else self._kind.fixed(linear, parts)

    def mark(self, model: nn.Module) -> None:
        """Say how the model was loaded, as transformers and peft ask for it."""
        for name in ("is_loaded_in_8bit", "is_loaded_in_4bit"):
            wanted = self.config.load_in_8bit if name.endswith("8bit") else self.config.load_in_4bit
            if wanted:
                setattr(model, name, True)


def _kind(config: BnbQuantizationConfig) -> Kind:
    if config.load_in_8bit:
        from .bnb_eight import EightBits

        return EightBits(config)
    from .bnb_four import FourBits

    return FourBits(config)


__all__ = ["BnbQuantizer"]
