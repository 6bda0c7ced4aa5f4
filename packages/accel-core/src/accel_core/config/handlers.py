"""The documented settings that become keyword arguments of something in torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from accel_core.enums import DDPCommunicationHookType
from accel_core.errors import Fault

from . import checks
from .base import KwargsHandler

_HOOK_FIELDS = ("comm_hook", "comm_wrapper", "comm_state_option")
_WRAPPERS = (DDPCommunicationHookType.NO, DDPCommunicationHookType.FP16, DDPCommunicationHookType.BF16)
_WITH_STATE = (DDPCommunicationHookType.POWER_SGD, DDPCommunicationHookType.BATCHED_POWER_SGD)
_HOOK_STATE = (
    "matrix_approximation_rank",
    "start_powerSGD_iter",
    "min_compression_rate",
    "use_error_feedback",
    "warm_start",
    "orthogonalization_epsilon",
    "random_seed",
    "compression_stats_logging_frequency",
    "batch_tensors_with_same_shape",
)
"""The arguments of torch's ``PowerSGDState``, its process group left out: that is the strategy's."""


@dataclass(frozen=True, slots=True)
class AutocastKwargs(KwargsHandler):
    """How ``torch.autocast`` behaves in ``Accelerator.autocast``."""

    enabled: bool = True
    cache_enabled: bool | None = None

    def faults(self) -> Iterator[Fault]:
        """Yield everything that is wrong."""
        yield from checks.flags(self, "enabled")
        yield from checks.flags(self, "cache_enabled", optional=True)


@dataclass(frozen=True, slots=True)
class DistributedDataParallelKwargs(KwargsHandler):
    """How a model is wrapped in ``torch.nn.parallel.DistributedDataParallel``.

    ``bucket_cap_mb`` is in MiB. The communication hook and its wrapper may be given by name;
    ``comm_wrapper`` is for the PowerSGD hooks, and so is ``comm_state_option``: the arguments of torch's
    ``PowerSGDState`` (https://docs.pytorch.org/docs/stable/ddp_comm_hooks.html).
    """

    dim: int = 0
    broadcast_buffers: bool = True
    bucket_cap_mb: int = 25
    find_unused_parameters: bool = False
    check_reduction: bool = False
    gradient_as_bucket_view: bool = False
    static_graph: bool = False
    comm_hook: DDPCommunicationHookType = DDPCommunicationHookType.NO
    comm_wrapper: DDPCommunicationHookType = DDPCommunicationHookType.NO
    comm_state_option: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.as_member(self, "comm_hook", DDPCommunicationHookType)
        checks.as_member(self, "comm_wrapper", DDPCommunicationHookType)
        KwargsHandler.__post_init__(self)

    def faults(self) -> Iterator[Fault]:
        """Yield everything that is wrong."""
        yield from checks.whole(self, "dim")
        yield from checks.number(self, "bucket_cap_mb", above=0)
        yield from checks.flags(
            self,
            "broadcast_buffers",
            "find_unused_parameters",
            "check_reduction",
            "gradient_as_bucket_view",
            "static_graph",
        )
        yield from checks.one_of(self, "comm_hook", DDPCommunicationHookType)
        yield from checks.one_of(self, "comm_wrapper", _WRAPPERS)
        options: object = self.comm_state_option
        if isinstance(options, dict):
            yield from checks.keys(self, "comm_state_option", _HOOK_STATE, optional=False)
        else:
            yield from checks.instance(self, "comm_state_option", dict, optional=False)
        yield from self._hook_faults()

    def _hook_faults(self) -> Iterator[Fault]:
        """Yield what a hook, its wrapper and its options would not do together."""
        if not isinstance(self.comm_hook, DDPCommunicationHookType) or self.comm_hook in _WITH_STATE:
            return
        hook, wrapper, none = self.comm_hook, self.comm_wrapper, DDPCommunicationHookType.NO
        if wrapper in _WRAPPERS and wrapper not in (none, hook):
            alone = f"use comm_hook={str(wrapper)!r} for gradients sent as {wrapper}"
            if hook == none:
                yield Fault("comm_wrapper", str(wrapper), "has no comm_hook to wrap", alone)
            else:
                reason = f"contradicts comm_hook={str(hook)!r}, which sends gradients in its own type"
                yield Fault("comm_wrapper", str(wrapper), reason, f"leave it out, or {alone}")
        if self.comm_state_option:
            reason = f"is for comm_hook='power_sgd' and 'batched_power_sgd'; comm_hook={str(hook)!r} has none"
            yield Fault("comm_state_option", self.comm_state_option, reason, "leave it out, or set comm_hook")

    def to_dict(self, ignore_keys: Sequence[str] = _HOOK_FIELDS) -> dict[str, Any]:
        """Return the settings by name, without those that torch's constructor does not take."""
        return {key: value for key, value in KwargsHandler.to_dict(self).items() if key not in ignore_keys}

    def register_comm_hook(self, model: Any) -> None:
        """Register the communication hook, if there is one, on ``model``, a ``DistributedDataParallel``.

        A prepared model has its hook already. Collective: the ranks see whether their backend can.
        Raises CapabilityError when it cannot, ConfigError for options that torch refuses, StateError for
        a model that has a hook, TypeError for another model, NotInstalledError without accel-parallel.
        """
        if self.comm_hook != DDPCommunicationHookType.NO:
            from accel_core import plugins

            plugins.find(plugins.STRATEGIES, "ddp").register_comm_hook(model, self)


@dataclass(frozen=True, slots=True)
class GradScalerKwargs(KwargsHandler):
    """How the gradient scaler of fp16 training adapts its scale."""

    init_scale: float = 65536.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    enabled: bool = True

    def faults(self) -> Iterator[Fault]:
        """Yield everything that is wrong."""
        yield from checks.number(self, "init_scale", above=0)
        yield from checks.number(self, "growth_factor", above=1)
        yield from checks.number(self, "backoff_factor", above=0, below=1)
        yield from checks.whole(self, "growth_interval", minimum=1)
        yield from checks.flags(self, "enabled")


@dataclass(frozen=True, slots=True)
class InitProcessGroupKwargs(KwargsHandler):
    """How the ranks' process group is made; ``timeout`` None leaves the backend's own."""

    backend: str | None = "nccl"
    init_method: str | None = None
    timeout: timedelta | None = None

    def faults(self) -> Iterator[Fault]:
        """Yield everything that is wrong."""
        yield from checks.instance(self, "backend", str)
        yield from checks.instance(self, "init_method", str)
        yield from checks.instance(self, "timeout", timedelta, fix="pass datetime.timedelta(seconds=...)")
        if isinstance(self.timeout, timedelta) and self.timeout <= timedelta(0):
            yield Fault("timeout", self.timeout, "must be more than zero")

    @property
    def wanted_backend(self) -> str | None:
        """Return the backend to insist on, or None to let the device choose.

        ``"nccl"`` is the documented default and cannot be told from an explicit wish, so it is read
        as no wish: a GPU chooses nccl by itself, and on anything else it could only fail.
        """
        return None if self.backend == "nccl" else self.backend


__all__ = [
    "AutocastKwargs",
    "DistributedDataParallelKwargs",
    "GradScalerKwargs",
    "InitProcessGroupKwargs",
]
