"""PowerSGD of torch: gradients sent as products of two thin matrices (https://arxiv.org/abs/1905.13727)."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as upstream

from accel_core.errors import CapabilityError

_EPSILON = 1e-8
_EPSILON_FP16 = 1e-6


def epsilon_for(wire: torch.dtype | None) -> float:
    """Return what is added to norms before they divide, for matrices sent as ``wire``.

    torch adds nothing by default, and a layer whose gradient is all zeros then becomes NaN for good; 1e-8
    is what torch's own message advises. In fp16 that is zero, so there it is 1e-6.
    """
    return _EPSILON_FP16 if wire is torch.float16 else _EPSILON


def new_state(group: dist.ProcessGroup | None, options: dict[str, Any]) -> Any:
    """Return torch's ``PowerSGDState``; its ValueError or TypeError tells of options that it refuses."""
    rank = options.get("matrix_approximation_rank", 1)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"matrix_approximation_rank={rank!r}: must be a whole number of at least 1")
    return upstream.PowerSGDState(process_group=group, **options)


def in_order(hook: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return ``hook`` with one bucket finished before the next begins.

    The hook starts its second and third reduction when the one before is done, on gloo from a thread of
    its own. With another bucket or the map of unused parameters under way, ranks would start them in
    different orders: "op.preamble.length <= op.nbytes. 96 vs 4 ... collective mismatch", and the process is
    gone. Where the backend queues operations nothing is lost: torch's hook waits for the device itself.
    """

    def run(state: Any, bucket: Any) -> Any:
        sent = hook(state, bucket)
        sent.wait()
        return sent

    return run


def layered_hook() -> Any:
    """Return the hook that compresses each matrix of a bucket on its own."""
    return upstream.powerSGD_hook


def batched_hook(epsilon: float) -> Any:
    """Return the hook that compresses a whole bucket as one matrix.

    In torch 2.13 ``batched_powerSGD_hook`` gives its one matrix to ``_orthogonalize``, which takes a stack
    of them: "AssertionError" at powerSGD_hook.py line 26, on every device. Where that is so, the hook is
    given an ``_orthogonalize`` that takes both; nothing in torch is changed.
    """
    original: Any = upstream.batched_powerSGD_hook
    inner = getattr(upstream, "_orthogonalize", None)
    if inner is None or _takes_one_matrix(inner) or not isinstance(original, FunctionType):
        return original
    names = {**original.__globals__, "_orthogonalize": _for_one_matrix(inner, epsilon)}
    return FunctionType(
        original.__code__, names, original.__name__, original.__defaults__, original.__closure__
    )


def _takes_one_matrix(orthogonalize: Callable[..., Any]) -> bool:
    try:
        orthogonalize(torch.eye(2))
    except (AssertionError, IndexError, RuntimeError):
        return False
    return True


def _for_one_matrix(inner: Callable[..., Any], epsilon: float) -> Callable[[torch.Tensor], None]:
    def orthogonalize(matrix: torch.Tensor) -> None:
        rows, columns = matrix.shape
        if columns > rows:
            raise CapabilityError(
                f"A bucket of gradients is too small for batched PowerSGD of rank {columns}: as a square"
                f" matrix it has {rows} rows",
                where=f"a bucket of at most {rows * rows} elements",
                fix="lower matrix_approximation_rank, raise bucket_cap_mb, or use comm_hook='power_sgd'",
            )
        inner(matrix.unsqueeze(0), epsilon)

    return orthogonalize


__all__ = ["batched_hook", "epsilon_for", "in_order", "layered_hook", "new_state"]
