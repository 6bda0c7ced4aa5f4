"""Loss scaling for fp16, safe for several optimizers."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch.optim import Optimizer

from accel_core.errors import StateError


def _innermost(optimizer: Optimizer) -> Optimizer:
    # torch's scaler knows optimizers by identity: a wrapper and what it wraps must be one to it,
    # or gradients that were unscaled through one are unscaled again through the other.
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


class GradScaler(torch.amp.GradScaler):
    """A ``torch.amp.GradScaler`` whose ``update`` waits for the next ``scale``.

    Each optimizer may then call ``step`` and ``update`` by itself, as wrapped optimizers do: all that
    belong to one backward are unscaled by the scale of that backward. With torch's own scaler the
    first ``update`` changes the scale and forgets what was unscaled, and the second optimizer steps
    with gradients that are wrong by the growth factor, or by the whole scale after clipping.

    Reading the scale or the state settles a waiting update. Stepping or unscaling after that, without
    a new ``scale``, raises StateError.
    """

    updates = 0
    """How often the scale was updated; what was unscaled before the latest one is forgotten."""
    _waiting = False
    _settled = False

    def update(self, new_scale: Any = None) -> None:
        """Note that the step is over; a given ``new_scale`` takes effect at once."""
        if new_scale is not None:
            self._waiting = False
            self.updates += 1
            super().update(new_scale)
        elif self.is_enabled():
            self._waiting = True

    def _settle(self) -> None:
        if self._waiting:
            self._waiting = False
            self._settled = True
            self.updates += 1
            super().update()

    @overload
    def scale(self, outputs: torch.Tensor) -> torch.Tensor: ...
    @overload
    def scale(self, outputs: list[torch.Tensor]) -> list[torch.Tensor]: ...
    @overload
    def scale(self, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]: ...
    @overload
    def scale(self, outputs: Any) -> Any: ...
    def scale(self, outputs: Any) -> Any:
        """Return the outputs multiplied by the scale; settle the update of the step before."""
        self._settle()
        self._settled = False
        return super().scale(outputs)

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale. Raises RuntimeError on a second call before ``step``."""
        self._refuse_stale("unscale_()")
        super().unscale_(_innermost(optimizer))

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Step the optimizer unless its gradients overflowed; a wrapper is looked through."""
        self._refuse_stale("step()")
        return super().step(_innermost(optimizer), *args, **kwargs)

    def _refuse_stale(self, call: str) -> None:
        if self._settled:
            raise StateError(
                f"{call} of the gradient scaler after its scale was already updated for the next backward",
                where="an optimizer that is stepped after the scale or the scaler's state was read",
                fix="step all optimizers first and read the scale after the last, or compute a new backward",
            )

    def get_scale(self) -> float:
        """Return the scale of the next backward."""
        self._settle()
        return super().get_scale()

    def state_dict(self) -> dict[str, Any]:
        """Return scale, factors and growth count, with the last step counted."""
        self._settle()
        return super().state_dict()

    def state_after_update(self) -> dict[str, Any]:
        """Return what ``state_dict`` will say after the ``update`` of the step that was taken.

        Nothing is changed: the update may still be put off, because others step first.
        """
        if self._waiting or not self.is_enabled() or self._scale is None or self._growth_tracker is None:
            return self.state_dict()
        kept = self._scale, self._growth_tracker, self._per_optimizer_states
        self._scale, self._growth_tracker = self._scale.clone(), self._growth_tracker.clone()
        try:
            super().update()
            return super().state_dict()
        finally:
            self._scale, self._growth_tracker, self._per_optimizer_states = kept

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; an update that waits belongs to the past and is dropped.

        So does what was unscaled and never applied.
        """
        self._settle()
        super().load_state_dict(state_dict)
        self._per_optimizer_states.clear()

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        return super().__getstate__()


__all__ = ["GradScaler"]
