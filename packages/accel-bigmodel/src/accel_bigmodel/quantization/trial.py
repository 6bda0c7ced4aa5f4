"""Whether quantized layers compute on a device: what runs where only trying tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from accel_core.errors import CapabilityError

if TYPE_CHECKING:
    from accel_core.protocols import Quantizer


def check_by_trial(
    quantizer: Quantizer,
    device: torch.device,
    *,
    dtype: torch.dtype,
    width: int,
    text: str,
    fix: Callable[[str], str],
) -> None:
    """Raise CapabilityError unless a layer of ``width`` inputs in ``dtype`` computes on ``device``.

    ``text`` says what was tried, ``fix`` what to do, given the first line of the reason.
    """
    try:
        with torch.no_grad():
            linear = nn.Linear(width, 64, bias=False, device=device, dtype=dtype)
            layer = quantizer.layer(linear, quantizer.quantize(linear.weight.detach()), movable=True)
            layer.eval()(torch.ones(1, width, device=device, dtype=dtype))
    # Whatever a library raises for a device, or for a package that is not there.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CapabilityError(
            f"{quantizer.name} cannot compute {text} on {device}: {reason[:200]}", fix=fix(reason)
        ) from error


__all__ = ["check_by_trial"]
