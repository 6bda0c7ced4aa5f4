"""What gradients are sent as: torch's communication hooks, checked against the backend before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from accel_core.enums import DDPCommunicationHookType as Kind
from accel_core.errors import CapabilityError, ConfigError, Fault, StateError

Hook = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class CommHook:
    """A hook with the state that it keeps from step to step; ``state`` belongs into a checkpoint.

    ``sends`` are the dtypes that the backend must be able to add up, beside the gradients' own.
    """

    run: Hook
    state: Any
    sends: tuple[torch.dtype, ...]


_COMPRESSED: Mapping[Kind, tuple[torch.dtype, Hook, Callable[[Hook], Hook]]] = {
    Kind.FP16: (torch.float16, default_hooks.fp16_compress_hook, default_hooks.fp16_compress_wrapper),
    Kind.BF16: (torch.bfloat16, default_hooks.bf16_compress_hook, default_hooks.bf16_compress_wrapper),
}


def kind_of(settings: Any) -> Kind:
    """Return which hook ``settings`` ask for, NO for settings that know of none."""
    return Kind(getattr(settings, "comm_hook", Kind.NO))


def build(settings: Any, group: dist.ProcessGroup | None) -> CommHook:
    """Return the hook that ``settings`` describe, for gradients that are averaged over ``group``.

    Raises ConfigError for options that PowerSGD does not take.
    """
    kind = kind_of(settings)
    wrapper = Kind(getattr(settings, "comm_wrapper", Kind.NO))
    compressed = _COMPRESSED.get(kind)
    if compressed is not None:
        dtype, hook, _ = compressed
        return CommHook(_renamed(hook), group, (dtype,))
    from . import power_sgd

    half = _COMPRESSED.get(wrapper)
    options = dict(getattr(settings, "comm_state_option", None) or {})
    options.setdefault("orthogonalization_epsilon", power_sgd.epsilon_for(half[0] if half else None))
    state = _checked_state(power_sgd.new_state, group, options)
    if kind is Kind.POWER_SGD:
        hook = power_sgd.layered_hook()
    else:
        hook = power_sgd.batched_hook(options["orthogonalization_epsilon"])
    sends: tuple[torch.dtype, ...] = ()
    if half is not None:
        hook, sends = half[2](hook), (half[0],)
    return CommHook(_renamed(power_sgd.in_order(hook)), state, sends)


def _checked_state(
    make: Callable[[Any, dict[str, Any]], Any], group: dist.ProcessGroup | None, options: dict[str, Any]
) -> Any:
    try:
        return make(group, options)
    except (TypeError, ValueError) as error:
        fault = Fault("comm_state_option", options, str(error).strip(), "change or leave out that option")
        raise ConfigError("DistributedDataParallelKwargs", [fault]) from error


def _renamed(hook: Hook) -> Hook:
    """Return ``hook`` under a name that torch does not know.

    Of hooks called "bf16_compress..." torch asks for CUDA with NCCL 2.10 or XPU, because older NCCL cannot
    add bfloat16 ("BF16 all reduce communication hook required CUDA 11+ and NCCL 2.10+ or XPU and XCCL").
    gloo can. Whether a backend can is asked of the backend itself, in `register`. Without annotations,
    because torch compares them with its types, and here they are text.
    """

    def accel_comm_hook(state, bucket):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return hook(state, bucket)

    return accel_comm_hook


def check_backend(hook: CommHook, group: dist.ProcessGroup | None, device: torch.device) -> None:
    """Raise CapabilityError when the backend cannot add up what ``hook`` sends. Collective."""
    for dtype in hook.sends:
        try:
            dist.all_reduce(torch.zeros(1, dtype=dtype, device=device), group=group)
        except (RuntimeError, TypeError, ValueError) as error:
            raise CapabilityError(
                f"The backend cannot add up {dtype}, which the communication hook would send: "
                f"{str(error).strip().splitlines()[0]}",
                where=f"backend {dist.get_backend(group)}, torch {torch.__version__}, device {device}",
                fix="use another comm_hook or comm_wrapper, or none",
            ) from error


def register(model: Any, hook: CommHook) -> None:
    """Make ``model`` send its gradients through ``hook``.

    Raises TypeError for a model that is no ``DistributedDataParallel``, StateError for a second hook.
    """
    if not isinstance(model, DistributedDataParallel):
        raise TypeError(f"A communication hook needs a DistributedDataParallel, not {type(model).__name__}")
    check_backend(hook, model.process_group, model.device)
    try:
        model.register_comm_hook(hook.state, hook.run)
    except RuntimeError as error:
        raise StateError(
            f"The communication hook was not registered: {str(error).strip().splitlines()[0]}",
            where=f"{type(model.module).__name__} in {type(model).__name__}",
            fix="a model has one hook, and prepare() has registered that of kwargs_handlers already",
        ) from error


def refuse_scaled(hook: CommHook) -> None:
    """Raise CapabilityError for a hook that keeps gradients from step to step, when the loss is scaled.

    One overflow would make what it keeps infinite for good, and a new scale would give it another unit.
    """
    kept = [name for name in ("use_error_feedback", "warm_start") if getattr(hook.state, name, False)]
    if kept:
        raise CapabilityError(
            "PowerSGD keeps parts of gradients from step to step, and the loss scale of fp16 changes their"
            " unit; an overflow would stay in them for ever",
            where=f"comm_state_option: {', '.join(kept)}",
            fix="train in bf16, or set use_error_feedback=False and warm_start=False",
        )


__all__ = ["CommHook", "build", "check_backend", "kind_of", "refuse_scaled", "register"]
