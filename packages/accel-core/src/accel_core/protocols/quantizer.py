"""What accel asks of a library that quantizes the weights of linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import nn


@runtime_checkable
class Quantizer(Protocol):
    """One way to quantize linear layers. Its factory takes the settings; raises if it cannot follow them.

    A quantized weight is *parts*: plain tensors by the names that they are saved under, relative to their
    layer (``weight``, ``weight.scale``). So it is saved, mapped, measured and offloaded like any other.
    """

    name: str
    """``"bitsandbytes"``, ``"torchao"`` or a third party's."""

    def check(self, device: torch.device) -> None:
        """Raise CapabilityError with the reason if layers cannot compute on ``device``."""

    def refusal(self, linear: nn.Linear) -> str:
        """Return why ``linear``, which may be on the meta device, cannot be quantized; nothing if it can."""
        ...

    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parts of ``weight`` on its device, which may be meta. ``weight`` is not changed."""
        ...

    def stored(
        self, linear: nn.Linear, found: Mapping[str, torch.Tensor], where: str
    ) -> dict[str, torch.Tensor] | None:
        """Return the parts among what a checkpoint has ``found`` for ``linear``; None for a plain weight.

        Raises CheckpointError, with ``where``, for parts that are damaged or of other settings.
        """
        ...

    def layer(self, linear: nn.Linear, parts: Mapping[str, torch.Tensor], *, movable: bool) -> nn.Linear:
        """Return a layer that computes with ``parts``, and has the bias of ``linear``.

        ``state_dict`` of it has the parts. ``movable``: they are parameters of the layer, each for itself,
        that may be exchanged between calls, and ``saved_as`` of the layer is a dict of what each is saved as;
        else the layer is as the library itself makes it.
        """
        ...

    def mark(self, model: nn.Module) -> None:
        """Set on a model what other libraries look for to know that it is quantized."""
