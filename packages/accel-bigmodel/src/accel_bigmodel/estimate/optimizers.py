"""What optimizers keep for every weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from accel_core.errors import UnknownNameError

from .packed import Weight

# Of bitsandbytes: absolute maxima for blocks of 256, and no quantization of small tensors.
_BLOCK = 256
_SMALLEST = 4096


def _copies(count: int) -> Callable[[Weight, int], int]:
    return lambda weight, bits: count * -(-weight.elements * bits // 8)


def _in_8_bits(count: int) -> Callable[[Weight, int], int]:
    def states(weight: Weight, _bits: int) -> int:
        if weight.elements < _SMALLEST:
            return 4 * count * weight.elements
        return count * (weight.elements + 4 * -(-weight.elements // _BLOCK))

    return states


def _factored(weight: Weight, bits: int) -> int:
    """Return the rows and columns that Adafactor keeps of a matrix (Shazeer and Stern, 2018, algorithm 4)."""
    if len(weight.shape) < 2:
        return -(-weight.elements * bits // 8)
    *others, rows, columns = weight.shape
    return -(-math.prod(others) * (rows + columns) * bits // 8)


STATES: dict[str, Callable[[Weight, int], int]] = {
    "adafactor": _factored,
    "adagrad": _copies(1),
    "adam": _copies(2),
    "adam8bit": _in_8_bits(2),
    "adamw": _copies(2),
    "adamw8bit": _in_8_bits(2),
    "lion": _copies(1),
    "lion8bit": _in_8_bits(1),
    "rmsprop": _copies(1),
    "sgd": _copies(0),
    "sgd_momentum": _copies(1),
}
"""Bytes of the states for one weight, given the bits of one number of them; without counters of steps."""


def state_bytes(optimizer: str, weights: Iterable[Weight], bits: int) -> int:
    """Return the bytes that ``optimizer`` keeps for ``weights``, in numbers of ``bits`` bits.

    Raises UnknownNameError for an optimizer that is not in ``STATES``.
    """
    if optimizer not in STATES:
        raise UnknownNameError("optimizer", optimizer, STATES)
    states = STATES[optimizer]
    return sum(states(weight, bits) for weight in weights)


__all__ = ["STATES", "state_bytes"]
