"""The built-in precision policies, as factories of ``torch.device``; each is an entry point."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import update_wrapper
from typing import Any

import torch
from torch import nn

from accel_core.errors import CapabilityError, PrepareError
from accel_core.protocols import Device, PrecisionPlan, Scaler

from .outputs import convert_to_fp32
from .scaler import GradScaler


class AutocastForward:
    """A module's ``forward``, run under autocast, with fp32 outputs.

    An object and not a closure, so that the module can still be pickled and copied; ``__wrapped__``
    is the original, so that its signature is what ``inspect`` shows.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        device_type: str,
        dtype: torch.dtype,
        *,
        own: bool,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        update_wrapper(self, forward)
        self.__wrapped__ = forward
        self.device_type = device_type
        self.dtype = dtype
        self.enabled = enabled
        self.cache_enabled = cache_enabled
        self.own = own
        """The module had a ``forward`` of its own, beside its class's, that must come back."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the original forward under autocast and return its outputs in fp32."""
        # A new context per call: one object cannot be entered twice, and modules may call themselves.
        with torch.autocast(self.device_type, self.dtype, self.enabled, self.cache_enabled):
            outputs = self.__wrapped__(*args, **kwargs)
        return convert_to_fp32(outputs)


def restore_forward(model: nn.Module) -> nn.Module:
    """Return ``model`` with the forward that it had before a policy of this package converted it."""
    present = model.__dict__.get("forward")
    if isinstance(present, AutocastForward):
        if present.own:
            model.__dict__["forward"] = present.__wrapped__
        else:
            del model.__dict__["forward"]
    return model


class FullPrecision:
    """Compute in the dtype that the model has: nothing is changed and nothing costs anything."""

    name = "no"

    def __init__(
        self, device: torch.device, *, enabled: bool = True, cache_enabled: bool | None = None
    ) -> None:
        self.device = device

    def plan(self) -> PrecisionPlan:
        """Return a plan in which everything stays as the model has it."""
        return PrecisionPlan()

    def check(self, device: Device) -> None:
        """Accept every device."""

    def convert(self, model: nn.Module) -> nn.Module:
        """Return the model as it is."""
        return model

    def restore(self, model: nn.Module) -> nn.Module:
        """Return the model as it is."""
        return model

    def autocast(
        self, *, enabled: bool = True, cache_enabled: bool | None = None
    ) -> AbstractContextManager[None]:
        """Return an empty context."""
        return nullcontext()

    def scaler(self, **settings: Any) -> Scaler | None:
        """Return None: full precision gradients do not underflow."""
        return None


class AutocastPrecision:
    """Compute in a half-precision ``dtype`` where torch deems it safe; parameters stay as they are.

    ``needs`` are the capabilities that the device must have. ``enabled`` and ``cache_enabled`` are those of
    ``torch.autocast``, for the models that are converted.
    """

    name: str
    dtype: torch.dtype
    needs: tuple[str, ...]

    def __init__(
        self, device: torch.device, *, enabled: bool = True, cache_enabled: bool | None = None
    ) -> None:
        self.device = device
        self._enabled = enabled
        self._cache_enabled = cache_enabled

    def plan(self) -> PrecisionPlan:
        """Return half precision to compute in, fp32 for reductions and outputs, storage as it is."""
        return PrecisionPlan(compute=self.dtype, reduce=torch.float32, output=torch.float32)

    def check(self, device: Device) -> None:
        """Raise CapabilityError with the device's reason if it cannot compute in this precision."""
        for capability in self.needs:
            answer = device.supports(capability)
            if not answer:
                raise CapabilityError(
                    f"mixed_precision={self.name!r} cannot be used on {device.name}: "
                    f"{answer.reason or 'no reason given'}",
                    where=f"device {device.name}, capability {capability!r}",
                    fix="choose mixed_precision='no', or another device",
                )

    def convert(self, model: nn.Module) -> nn.Module:
        """Return ``model``, its forward run under autocast and its outputs made fp32.

        Converting again for the same precision changes nothing. Raises PrepareError for a model that
        was converted to another one.
        """
        present = model.__dict__.get("forward")
        if isinstance(present, AutocastForward):
            if (present.device_type, present.dtype) != (self.device.type, self.dtype):
                raise PrepareError(
                    f"{type(model).__name__} already computes in {present.dtype} on {present.device_type}",
                    where=f"converting it to {self.dtype} on {self.device.type}",
                    fix="restore() it with the policy that converted it, or prepare a fresh model",
                )
            return model
        own = present is not None
        model.__dict__["forward"] = AutocastForward(
            model.forward,
            self.device.type,
            self.dtype,
            own=own,
            enabled=self._enabled,
            cache_enabled=self._cache_enabled,
        )
        return model

    def restore(self, model: nn.Module) -> nn.Module:
        """Return ``model`` with the forward that it had before ``convert``."""
        return restore_forward(model)

    def autocast(
        self, *, enabled: bool = True, cache_enabled: bool | None = None
    ) -> AbstractContextManager[None]:
        """Return a context in which operations compute in this precision, or, not ``enabled``, in theirs."""
        return torch.autocast(self.device.type, self.dtype, enabled=enabled, cache_enabled=cache_enabled)

    def scaler(self, **settings: Any) -> Scaler | None:
        """Return None: this precision has the range of fp32."""
        return None


class BFloat16(AutocastPrecision):
    """bf16: the range of fp32 with 8 bits of precision; needs no loss scaling."""

    name = "bf16"
    dtype = torch.bfloat16
    needs: tuple[str, ...] = ("bf16",)


class Float16(AutocastPrecision):
    """fp16: 11 bits of precision, a range of 6e-8 to 65504; gradients are scaled against underflow."""

    name = "fp16"
    dtype = torch.float16
    needs: tuple[str, ...] = ("fp16", "scaler")

    def scaler(self, **settings: Any) -> Scaler:
        """Return a new `GradScaler`; ``settings`` are those of ``torch.amp.GradScaler``."""
        return GradScaler(self.device.type, **settings)


__all__ = ["AutocastForward", "AutocastPrecision", "BFloat16", "Float16", "FullPrecision", "restore_forward"]
