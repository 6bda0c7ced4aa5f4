"""What accel asks of a way for processes to share one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .collectives import Collectives
from .device import Device
from .precision import Precision
from .state import UnitState

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One model with what trains it: the thing that a strategy wraps, as one.

    They belong together because some strategies must see them together: DeepSpeed builds one
    engine of all three, FSDP replaces the parameters that the optimizer holds.
    """

    name: str
    model: nn.Module
    optimizers: tuple[Optimizer, ...] = ()
    schedulers: tuple[LRScheduler, ...] = ()
    evaluation: bool = False
    """No gradients are wanted: the model may be left without gradient synchronisation."""
    place: bool = True
    """Whether the strategy moves the model to the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyContext:
    """Everything a strategy is built from; nothing else is looked up."""

    device: torch.device
    hardware: Device
    collectives: Collectives
    precision: Precision
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Typed settings by a short name, for example ``ddp`` or ``fsdp``.

    ``dynamo``, a `accel_core.config.TorchDynamoPlugin`, asks that `Strategy.wrap` compile models in place.
    """


@runtime_checkable
class GradientOps(Protocol):
    """What is done to gradients between the closing backward and the optimizer step."""

    def scale_(self, parameters: Iterable[torch.Tensor], factor: float) -> None:
        """Multiply the gradients in place."""

    def clip_norm_(
        self, parameters: Iterable[torch.Tensor], max_norm: float, norm_type: float = 2.0
    ) -> torch.Tensor:
        """Clip the gradients' total norm over all shards in place; return the norm before clipping."""
        ...

    def clip_value_(self, parameters: Iterable[torch.Tensor], clip_value: float) -> None:
        """Clamp every gradient element into ``[-clip_value, clip_value]`` in place."""


@runtime_checkable
class Strategy(Protocol):
    """How processes share one model.

    Built as ``factory(context)``. ``batches`` is the group of ranks that read different data:
    ranks of one tensor-, context- or pipeline-parallel group read the same batch, so loaders are
    sharded by ``batches.rank`` of ``batches.world_size`` and weights are summed over that group.
    """

    name: str
    batches: Collectives
    gradients: GradientOps
    states: UnitState

    def check(self, unit: Unit) -> None:
        """Raise CapabilityError or PrepareError for a unit that cannot be wrapped; change nothing."""

    def wrap(self, unit: Unit) -> Unit:
        """Return the unit ready to train: placed, converted to the precision, shared, in this order.

        Optimizers and schedulers come back in the same number and order; they may be the same
        objects, changed in place, or replaced.
        """
        ...

    def unwrap(self, model: nn.Module) -> nn.Module:
        """Return the user's model out of a wrapped one; a model that was not wrapped comes back as it is."""
        ...

    def backward(self, loss: torch.Tensor, *, sync: bool = True, **kwargs: Any) -> None:
        """Compute gradients; they are final on every rank when ``sync`` is true."""

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which forward and backward leave gradients unsynchronised."""
        ...

    def inputs(
        self,
        buffers: Sequence[torch.Tensor] = (),
        dims: Sequence[int] = (),
        keep: Iterable[torch.Tensor] = (),
    ) -> AbstractContextManager[None]:
        """Return a context in which sequence ``buffers`` hold this rank's part along ``dims``.

        ``keep`` names the buffers that need not be restored on leaving.
        """
        ...


class StrategyBase:
    """The optional half of `Strategy` as no-ops; a strategy overrides what differs."""

    def check(self, unit: Unit) -> None:
        """Accept every unit."""

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return an empty context: there is nothing to synchronise."""
        return nullcontext()

    def inputs(
        self,
        buffers: Sequence[torch.Tensor] = (),
        dims: Sequence[int] = (),
        keep: Iterable[torch.Tensor] = (),
    ) -> AbstractContextManager[None]:
        """Return an empty context: every rank sees whole sequences."""
        return nullcontext()
