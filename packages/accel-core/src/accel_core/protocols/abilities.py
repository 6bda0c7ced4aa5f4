"""What some strategies and groups can do beyond their protocol; who needs it asks with ``isinstance``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from accel_core.errors import CollectiveError


@runtime_checkable
class TrainsAlone(Protocol):
    """A strategy whose ranks each hold the whole model, and may go their own way for a while."""

    def alone(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which this rank's optimizer moves ``model`` by this rank's gradients.

        Raises CapabilityError for a model that cannot be trained like that.
        """
        ...

    def average_(self, model: nn.Module) -> None:
        """Make what is trained of ``model``, and its buffers, the mean over the ranks. Collective."""


@runtime_checkable
class JoinsUneven(Protocol):
    """A strategy in which a rank without data answers for those that still have some."""

    def join(
        self, joinables: Sequence[Any], *, divide_by_initial_world_size: bool = False
    ) -> AbstractContextManager[list[int]]:
        """Return a context in which ranks may run unequally many steps; it ends on all ranks together.

        It gives a list that holds, once left, the ranks that had the most steps. Raises CapabilityError or
        PrepareError for ``joinables`` that cannot be joined.
        """
        ...


@runtime_checkable
class SyncsLate(Protocol):
    """A strategy that can average gradients whose forward ran without synchronisation."""

    def sync_next(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which a backward averages all gradients of ``model`` that were added up."""
        ...


@runtime_checkable
class GuardsSteps(Protocol):
    """A strategy that knows whether gradients are what an optimizer may apply."""

    def before_step(self, optimizer: Optimizer) -> None:
        """Raise StateError when ``optimizer`` is about to apply gradients that were never averaged."""


@runtime_checkable
class ExplainsFailures(Protocol):
    """A group that can tell what a failure of torch's own communication on it means."""

    def explain(self, name: str, error: Exception) -> CollectiveError | None:
        """Return what ``error`` in ``name`` means, None when it is not about communication."""
        ...


__all__ = ["ExplainsFailures", "GuardsSteps", "JoinsUneven", "SyncsLate", "TrainsAlone"]
