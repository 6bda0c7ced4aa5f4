"""The optimizer wrapper: steps when an accumulation window closes, and only if its gradients are finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from accel_core.errors import StateError
from accel_core.protocols import Scaler
from accel_core.window import GradientWindow, unsettled
from accel_parallel.seen import Seen


def place_state(optimizer: Optimizer) -> None:
    """Move the optimizer's state to where its parameters are, keeping dtypes.

    Step counters that torch keeps on the CPU on purpose stay there.
    """
    for group in optimizer.param_groups:
        follows = bool(group.get("capturable") or group.get("fused"))
        for parameter in group["params"]:
            # Not optimizer.state[parameter]: that would create an entry.
            state = optimizer.state.get(parameter)
            if not isinstance(state, dict):
                continue
            for key, value in state.items():
                if not isinstance(value, torch.Tensor) or value.device == parameter.device:
                    continue
                if key != "step" or follows:
                    state[key] = value.to(parameter.device)


class AcceleratedOptimizer(Optimizer):
    """An optimizer that acts only at the end of an accumulation window.

    Between the ends, ``step`` and ``zero_grad`` do nothing, so a loop can call them for every
    micro-batch. With a ``scaler``, ``step`` goes through it and ``step_was_skipped`` tells whether
    gradients overflowed. Everything else is the wrapped ``optimizer``'s.

    ``device_placement``: state that was loaded before the model was moved follows its parameters.
    ``window``: by default every call closes a window. ``isinstance(..., torch.optim.Optimizer)`` holds,
    as learning rate schedulers ask for it; no state is kept twice.
    """

    def __init__(  # deliberately without super().__init__(): parameters and state belong to the wrapped one
        self,
        optimizer: Optimizer,
        device_placement: bool = True,
        scaler: Scaler | None = None,
        *,
        window: GradientWindow | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"AcceleratedOptimizer wraps a torch.optim.Optimizer, not {type(optimizer).__name__}"
            )
        self.optimizer = optimizer
        self.scaler = scaler
        self.device_placement = device_placement
        self.window = window if window is not None else GradientWindow()
        self._opt_called = False
        self._skipped: bool | torch.Tensor = False
        self._unscaled: int | None = None
        """The loss scale, by the count of its updates, that the gradients were divided by; None: by none."""
        self._applied = False
        self.updates = 0
        """Steps that were taken."""
        self.before_first_step: Callable[[], None] | None = None
        """Called once, when a step is about to be taken."""
        if device_placement:
            place_state(optimizer)

    # -- acting at the end of a window ---------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step if the window is closed; return what the optimizer returns, or None."""
        window = self.window
        if not window.sync_gradients:
            return None
        if window.unsettled:
            raise unsettled(window)
        if self.before_first_step is not None:
            self.before_first_step()
            self.before_first_step = None
        window.complete()
        self._applied = True
        if self.scaler is not None:
            return self._step_scaled(closure)
        self._opt_called = True
        self.updates += 1
        return self.optimizer.step() if closure is None else self.optimizer.step(closure)

    # torch's schedulers patch `step` of an optimizer unless it bears this mark, to learn whether it
    # was called before theirs; `_opt_called` is the answer that they then read.
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]

    def _step_scaled(self, closure: Callable[[], Any] | None) -> Any:
        assert self.scaler is not None
        reached: list[Any] = []
        # Fused optimizers are called even on an overflow, and skip by this tensor.
        watch = self.optimizer.register_step_pre_hook(
            lambda optimizer, *_: reached.append(getattr(optimizer, "found_inf", None))
        )
        try:
            arguments = {} if closure is None else {"closure": closure}
            result = self.scaler.step(self.optimizer, **arguments)
        finally:
            watch.remove()
        self._update_scale()
        self._unscaled = None
        if not reached:
            self._skipped = True
        else:
            self._opt_called = True
            self.updates += 1
            self._skipped = False if reached[0] is None else reached[0]
        return result

    def _update_scale(self) -> None:
        """Update the loss scale: at once, or at the end of a window to which others may still add.

        What they have accumulated was computed with the present scale, and so must be the rest of it.
        """
        window = self.window
        assert self.scaler is not None
        if window.inside and window.position > 1:
            window.at_end = self.scaler.update
        else:
            self.scaler.update()

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        """Clear gradients once a window has been applied; ``set_to_none`` defaults as in the optimizer.

        It may stand before the backward or after the step: what a window has accumulated is kept until
        the window is closed, what was applied is cleared before the next one begins.

        Raises StateError before the backward that closes a window over gradients that were applied and
        never cleared: they can no longer be told from those of this window.
        """
        window = self.window
        if not window.sync_gradients:
            if not (self._applied and window.position == 1 and not window.filled):
                return
        elif window.position > 1 and not window.filled:
            if self._applied:
                self._refuse_to_drop()
            return
        self._applied = False
        self._forget_unscaled()
        if set_to_none is None:
            self.optimizer.zero_grad()
        else:
            self.optimizer.zero_grad(set_to_none=set_to_none)

    def _refuse_to_drop(self) -> None:
        done = self.window.position - 1
        raise StateError(
            "zero_grad() in the micro-batch that closes the window would drop the gradients of the"
            f" {done} micro-batch(es) before it, and those of the window before were never cleared",
            where=f"micro-batch {done + 1} of the window, {type(self.optimizer).__name__}",
            fix="call zero_grad() in every micro-batch, first or last; or after each step",
        )

    def progress(self) -> dict[str, Any]:
        """Return what the wrapper knows beyond the optimizer's own state, as JSON."""
        return {"updates": self.updates, "applied": self._applied, "called": self._opt_called}

    def go_on(self, progress: dict[str, Any]) -> None:
        """Stand where ``progress`` was told."""
        self.updates, self._applied = progress["updates"], progress["applied"]
        self._opt_called = progress["called"]
        self._skipped = False
        self._unscaled = None

    @property
    def applied(self) -> bool:
        """Whether the gradients that are there were applied already, and wait to be cleared."""
        return self._applied

    def unscale_(self) -> None:
        """Divide gradients by the loss scale before they are clipped or read; further calls do nothing.

        Nothing happens within an open window, to which scaled gradients are still to be added.
        """
        if self.scaler is not None and self.window.sync_gradients and not self._is_unscaled():
            self.scaler.unscale_(self.optimizer)
            self._unscaled = self._scale_count()

    def _is_unscaled(self) -> bool:
        # Another optimizer's step may have updated the scale since: then these gradients are new.
        return self._unscaled is not None and self._unscaled == self._scale_count()

    def before_backward(self) -> Seen | None:
        """Return the gradients that were divided by the loss scale and not applied, None without any.

        If somebody else has cleared them, as ``model.zero_grad()`` does, the next ones are scaled anew.
        """
        if self._unscaled is None:
            return None
        found = self._seen()
        # Cleared gradients may be zeros. This waits for the device, but only where a step was left out.
        if any(gradient is not None and bool(gradient.count_nonzero()) for gradient in found.gradients):
            return found
        self._forget_unscaled()
        return None

    def after_backward(self, before: Seen) -> None:
        """Raise StateError when scaled gradients were added to those that ``before_backward`` found."""
        if not before.differs(self._seen()):
            return
        raise StateError(
            "backward() added gradients to some that were divided by the loss scale already: their sum has no"
            " meaning",
            where=f"{type(self.optimizer).__name__}: its gradients were clipped or unscaled, and neither"
            " applied nor cleared",
            fix="call zero_grad() where a step is left out on purpose; clip once, after the last backward",
        )

    def _forget_unscaled(self) -> None:
        """Note that a step was left out on purpose: the next gradients are scaled anew."""
        if self._is_unscaled():
            self._update_scale()
        self._unscaled = None

    def _seen(self) -> Seen:
        return Seen.of(parameter for group in self.param_groups for parameter in group["params"])

    def _scale_count(self) -> int:
        return getattr(self.scaler, "updates", 0)

    @property
    def step_was_skipped(self) -> bool:
        """Whether the latest step was left out because gradients were infinite or NaN."""
        if isinstance(self._skipped, torch.Tensor):
            # Read only when asked: on an accelerator this waits for the device.
            self._skipped = bool(self._skipped.item())
        return self._skipped

    # -- the wrapped optimizer's own -----------------------------------------------------------

    @property
    def state(self) -> Any:
        """The wrapped optimizer's state by parameter."""
        return self.optimizer.state

    @state.setter
    def state(self, value: Any) -> None:
        self.optimizer.state = value

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's parameter groups."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = value

    @property
    def defaults(self) -> dict[str, Any]:
        """The wrapped optimizer's default hyperparameters."""
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.optimizer.defaults = value

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the wrapped optimizer's state; torch places it beside its parameters."""
        self.optimizer.load_state_dict(state_dict)

    def train(self) -> None:
        """Switch an optimizer that has modes (schedule-free ones) to training."""
        if callable(switch := getattr(self.optimizer, "train", None)):
            switch()

    def eval(self) -> None:
        """Switch an optimizer that has modes to evaluation."""
        if callable(switch := getattr(self.optimizer, "eval", None)):
            switch()

    def register_step_pre_hook(self, hook: Any) -> Any:
        """Register the hook on the wrapped optimizer: it runs when a step is really taken."""
        return self.optimizer.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> Any:
        """Register the hook on the wrapped optimizer: it runs when a step was really taken."""
        return self.optimizer.register_step_post_hook(hook)

    def register_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register the hook on the wrapped optimizer."""
        return self.optimizer.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register the hook on the wrapped optimizer."""
        return self.optimizer.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register the hook on the wrapped optimizer."""
        return self.optimizer.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register the hook on the wrapped optimizer."""
        return self.optimizer.register_load_state_dict_post_hook(hook, prepend)

    def __getattr__(self, name: str) -> Any:
        # Called for what neither this object nor Optimizer has. Without "optimizer" (a copy being
        # built) there is nothing to ask, and asking would not end.
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        # The window belongs to a running loop; a copy that kept its position might never step.
        return {**self.__dict__, "window": None, "before_first_step": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.window = GradientWindow()

    def __repr__(self) -> str:
        return f"AcceleratedOptimizer({self.optimizer!r})"


__all__ = ["AcceleratedOptimizer", "place_state"]
