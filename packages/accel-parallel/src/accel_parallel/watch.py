"""Notice gradients that ranks compute but do not average: without this they drift apart in silence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import nn

from accel_core.errors import CollectiveError, StateError
from accel_parallel.seen import Seen

_SPREAD = 4
"""Parameters of a model that tell when a backward reached it; each costs about a microsecond."""


class ReductionWatch:
    """Watch one model: every backward that reaches its parameters must follow a forward of its container.

    The container averages gradients once per forward. A method of the inner module other than
    ``forward``, a submodule, or a second backward through the same forward leaves each rank with
    gradients of its own. A backward that no forward announced is compared parameter by parameter; of the
    others, hooks on a few parameters tell which models they reached.

    Under ``no_sync`` gradients are meant to stay local; they must have been averaged when an optimizer
    applies them, unless that happens under ``no_sync`` too.

    The container averages what was trainable when it was made, and nothing else. A model without
    anything trainable has no container; it is watched as it is.
    """

    __slots__ = (
        "__weakref__",
        "_frozen",
        "_hooks",
        "_model",
        "_seen",
        "_trainable",
        "armed",
        "averaged",
        "late",
        "local",
        "name",
        "owed",
        "reached",
    )

    def __init__(self, name: str, model: nn.Module) -> None:
        self.name = name
        self.armed = False
        """A forward was seen whose gradients the container will average."""
        self.owed = False
        """A forward under ``no_sync`` was seen whose backward was not."""
        self.averaged = False
        """Gradients were averaged at least once."""
        self.reached = False
        """Gradients arrived since that should have been averaged."""
        self.local = False
        """Gradients arrived that were to stay on this rank, and were not averaged since."""
        self.late = False
        """The next backward is to average gradients of a forward under ``no_sync``."""
        self._model = ref(model)
        self._seen: Seen | None = None
        self._frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        self._hooks: list[Any] = []
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self._trainable:
            self._hooks.append(model.register_forward_pre_hook(self._arm))
            for parameter in _spread(self._trainable):
                self._hooks.append(
                    parameter.register_post_accumulate_grad_hook(self._reach)  # type: ignore[no-untyped-call]
                )

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()

    # -- what happens to the model -------------------------------------------------------------

    def _arm(self, module: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled():
            if module.require_backward_grad_sync:
                self.armed = True
            else:
                self.owed = True

    def _reach(self, parameter: torch.Tensor) -> None:
        if self._averages():
            self.reached = True
        else:
            self.local = True
            self.owed = False

    def _averages(self) -> bool:
        model = self._model()
        return model is not None and getattr(model, "require_backward_grad_sync", True)

    # -- around a backward ---------------------------------------------------------------------

    def before(self, loss: torch.Tensor) -> None:
        """Note what a backward that nothing announced must leave alone."""
        if self.late:
            self._prepare(loss)
        elif not self.armed and self._trainable and self._averages():
            self._seen = Seen.of(self._trainable)

    def _prepare(self, loss: torch.Tensor) -> None:
        """Do now what the container's forward did not, because it ran under ``no_sync``."""
        model: Any = self._model()
        model.require_forward_param_sync = True
        # Only a search for unused parameters reads the outputs.
        model.reducer.prepare_for_backward([loss] if model.find_unused_parameters else [])
        self.late = False
        self.armed = True

    def check(self) -> None:
        """Raise CollectiveError when gradients arrived that should have been averaged and were not."""
        seen, self._seen = self._seen, None
        if seen is not None and not self.reached:
            self.reached = seen.differs(Seen.of(self._trainable))
        if self.reached:
            announced, self.armed, self.reached = self.armed, False, False
            if announced:
                self.averaged = True
                self.local = self.owed = False
            elif self.owed:
                # As documented for forwards under no_sync: gradients are added up, and averaged later.
                self.local = True
            else:
                raise self._not_averaged()
        for parameter in self._frozen:
            if parameter.requires_grad and parameter.grad is not None and self._averages():
                self._refuse(parameter)

    def _not_averaged(self) -> CollectiveError:
        return CollectiveError(
            f"The gradients of the model of unit {self.name!r} were not averaged: this backward "
            "reached its parameters without a forward of the prepared model before it",
            where="a method or a part of the inner model was called, or one forward had two backwards",
            fix="call the prepared model itself (let its forward choose what to do), and add up "
            "losses before one backward; for gradients of this rank alone use no_sync",
        )

    def _refuse(self, thawed: nn.Parameter) -> None:
        model = self._model()
        names = [] if model is None else [n for n, own in model.named_parameters() if own is thawed]
        raise CollectiveError(
            f"The gradients of the model of unit {self.name!r} were not averaged: a parameter that was "
            "frozen when the model was prepared is trained now, and each rank has its own gradient for it",
            where=", ".join(names) or f"a parameter of shape {tuple(thawed.shape)}",
            fix="set requires_grad before prepare(); to thaw it later call free_memory(), and prepare the "
            "model of unwrap_model() again with a new optimizer",
        )

    # -- before a step -------------------------------------------------------------------------

    def check_step(self, parameters: Iterable[torch.Tensor]) -> None:
        """Raise StateError when ``parameters`` are about to be moved by gradients of this rank alone."""
        if not (self.local and self._averages()):
            return
        own = {id(parameter) for parameter in self._trainable}
        held = [p for p in parameters if id(p) in own and p.grad is not None]
        # Cleared gradients may be zeros. This waits for the device, but only on the way to an error.
        if not any(bool(p.grad.count_nonzero()) for p in held if p.grad is not None):
            return
        raise StateError(
            f"The optimizer would apply gradients of the model of unit {self.name!r} that were never averaged"
            " between the ranks: they were added up under no_sync, and no synchronised backward followed",
            where="the micro-batch that closed the window had no backward for this model",
            fix="call forward and backward of each model in every micro-batch of a window; to clear what was"
            " added up call zero_grad(); to step with gradients of this rank alone, step inside of no_sync or"
            " use LocalSGD",
        )


def _spread(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return the first, the last, and a few in between."""
    count = min(len(parameters), _SPREAD)
    if count == 1:
        return [parameters[0]]
    last = len(parameters) - 1
    return list(dict.fromkeys(parameters[position * last // (count - 1)] for position in range(count)))


__all__ = ["ReductionWatch"]
