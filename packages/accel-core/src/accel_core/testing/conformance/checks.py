"""Comparisons for code that runs in workers, where plain asserts show no values."""

from __future__ import annotations

import torch


def same(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Fail unless dtype, shape, device and every bit of the values agree."""
    for name in ("dtype", "shape", "device"):
        found, wanted = getattr(actual, name), getattr(expected, name)
        if found != wanted:
            raise AssertionError(f"{what}: {name} is {found}, expected {wanted}")
    if not torch.equal(actual, expected):
        raise AssertionError(f"{what}: got {actual}, expected {expected}")


def close(actual: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float) -> None:
    """Fail unless the largest difference is at most ``tolerance`` times the largest expected value."""
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: shape is {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    scale = expected.abs().max().item() if expected.numel() else 0.0
    error = (actual - expected).abs().max().item() if expected.numel() else 0.0
    if not error <= tolerance * scale:
        raise AssertionError(
            f"{what}: largest difference {error:g}, relative {error / scale if scale else float('inf'):g}, "
            f"allowed {tolerance:g}\n  got      {actual}\n  expected {expected}"
        )


def equal(actual: object, expected: object, what: str) -> None:
    """Fail unless the values are equal."""
    if actual != expected:
        raise AssertionError(f"{what}: got {actual!r}, expected {expected!r}")


__all__ = ["close", "equal", "same"]
