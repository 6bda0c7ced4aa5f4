"""What every implementation of `Precision` must do."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import nn

from accel_core.errors import CapabilityError
from accel_core.protocols import Device, Precision, PrecisionPlan, Scaler, Support
from accel_core.testing.reference import CpuDevice

from .base import Conformance

Factory = Callable[[torch.device], Precision]


class Probe(nn.Module):
    """A linear layer that notes the dtype it computes in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(8, 8)
        self.seen: list[torch.dtype] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute, and note."""
        y: torch.Tensor = self.layer(x)
        self.seen.append(y.dtype)
        return y


class Refusing:
    """A device that supports nothing, and says why."""

    reason = "made of wood"

    def __init__(self, device: Device) -> None:
        self._device = device

    def __getattr__(self, name: str) -> object:
        return getattr(self._device, name)

    def supports(self, capability: str) -> Support:
        """Say no."""
        return Support(ok=False, reason=f"{self.reason}: no {capability}")


class PrecisionConformance(Conformance):
    """Override ``factory``; ``hardware`` where the CPU will not do.

    ``tolerance`` is how far results may be from fp32, relative; by default one unit in the last
    place of what the plan computes in, times the eight products of a sum.
    """

    tolerance: ClassVar[float | None] = None

    @pytest.fixture
    def factory(self) -> Factory:
        """Return what builds the policy for a device."""
        raise NotImplementedError

    @pytest.fixture
    def hardware(self) -> Device:
        """Return the device to compute on."""
        return CpuDevice()

    @pytest.fixture
    def place(self, hardware: Device) -> torch.device:
        """Return the torch device."""
        answer = hardware.available()
        if not answer:
            pytest.skip(answer.reason)
        place: torch.device = hardware.select(0)
        return place

    @pytest.fixture
    def precision(self, factory: Factory, place: torch.device) -> Precision:
        """Return the policy."""
        return factory(place)

    @pytest.fixture
    def compute(self, precision: Precision) -> torch.dtype:
        """Return what the plan computes an fp32 model in."""
        return precision.plan().compute or torch.float32

    def test_it_is_a_precision(self, precision: Precision) -> None:
        """Name and plan are there."""
        assert isinstance(precision, Precision)
        assert precision.name
        plan = precision.plan()
        assert isinstance(plan, PrecisionPlan)
        values = [getattr(plan, item.name) for item in dataclasses.fields(plan)]
        assert all(value is None or isinstance(value, torch.dtype) for value in values)

    def test_check_accepts_this_device(self, precision: Precision, hardware: Device) -> None:
        """The device that the suite runs on can."""
        precision.check(hardware)

    def test_check_refuses_with_the_devices_reason(
        self, precision: Precision, hardware: Device, compute: torch.dtype
    ) -> None:
        """A device that cannot is named, with its reason; full precision asks nothing."""
        refusing: Device = Refusing(hardware)  # type: ignore[assignment] # the rest is forwarded
        if compute == torch.float32:
            precision.check(refusing)
            return
        with pytest.raises(CapabilityError, match=Refusing.reason):
            precision.check(refusing)

    def test_convert_computes_in_the_plans_dtype(
        self, precision: Precision, place: torch.device, compute: torch.dtype
    ) -> None:
        """The same object comes back and computes in that dtype, near to what fp32 gives."""
        model = Probe().to(place)
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).to(place)
        plain = model(x)
        model.seen.clear()
        converted = precision.convert(model)
        assert converted is model
        result = converted(x)
        assert model.seen == [compute]
        assert result.dtype == (precision.plan().output or result.dtype)
        tolerance = self.tolerance if self.tolerance is not None else 8 * torch.finfo(compute).eps
        assert torch.allclose(result.float(), plain, rtol=0, atol=tolerance * plain.abs().max().item())

    def test_parameters_and_gradients_keep_their_dtype(
        self, precision: Precision, place: torch.device
    ) -> None:
        """Unless the plan stores otherwise, weights and their gradients stay fp32."""
        model = precision.convert(Probe().to(place))
        model(torch.ones(2, 8, device=place)).float().sum().backward()
        storage = precision.plan().storage or torch.float32
        for parameter in model.parameters():
            assert parameter.dtype == storage
            assert parameter.grad is not None
            assert parameter.grad.dtype == storage
            assert torch.isfinite(parameter.grad).all()

    def test_restore_undoes_convert(self, precision: Precision, place: torch.device) -> None:
        """The same object computes as before, bit by bit, and can be copied."""
        model = Probe().to(place)
        x = torch.ones(2, 8, device=place)
        plain, names = model(x), set(vars(model))
        restored = precision.restore(precision.convert(model))
        assert restored is model
        assert torch.equal(model(x), plain)
        assert set(vars(model)) == names
        assert torch.equal(copy.deepcopy(model)(x), plain)

    def test_restore_of_a_model_that_was_not_converted(
        self, precision: Precision, place: torch.device
    ) -> None:
        """It comes back as it is."""
        model = Probe().to(place)
        assert precision.restore(model) is model
        assert model(torch.ones(1, 8, device=place)).dtype == torch.float32

    def test_autocast(self, precision: Precision, place: torch.device, compute: torch.dtype) -> None:
        """Inside, products have the plan's dtype; disabled, or after it, they are fp32."""
        value = torch.ones(4, 4, device=place)
        with precision.autocast():
            assert (value @ value).dtype == compute
            with precision.autocast(enabled=False):
                assert (value @ value).dtype == torch.float32
        with precision.autocast(cache_enabled=False):
            assert (value @ value).dtype == compute
        assert (value @ value).dtype == torch.float32

    def test_autocast_ends_with_an_error(self, precision: Precision, place: torch.device) -> None:
        """An exception inside leaves nothing switched on."""
        value = torch.ones(4, 4, device=place)
        with pytest.raises(ZeroDivisionError), precision.autocast():
            raise ZeroDivisionError
        assert (value @ value).dtype == torch.float32

    def test_scaler_steps_and_skips(self, precision: Precision, place: torch.device) -> None:
        """A scaler scales, unscales and steps; on overflow it skips the step and lowers the scale."""
        scaler = precision.scaler()
        if scaler is None:
            return
        assert isinstance(scaler, Scaler)
        weight = nn.Parameter(torch.ones(2, device=place))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        for gradient, expected in ((0.5, 0.5), (float("inf"), 0.5)):
            before = scaler.get_scale()
            optimizer.zero_grad()
            scaler.scale((weight * gradient).sum()).backward()
            scaler.unscale_(optimizer)
            assert weight.grad is not None
            assert weight.grad[0].item() == gradient
            scaler.step(optimizer)
            scaler.update()
            assert weight.tolist() == [expected] * 2
            assert (scaler.get_scale() < before) == (gradient == float("inf"))

    def test_scaler_state_round_trip(self, precision: Precision, place: torch.device) -> None:
        """Each scaler is new; one takes over another's state."""
        first, second = precision.scaler(), precision.scaler()
        if first is None or second is None:
            assert first is second
            return
        assert first is not second
        first.scale(torch.ones((), device=place))
        first.update(first.get_scale() / 4)
        assert first.get_scale() != second.get_scale()
        second.load_state_dict(first.state_dict())
        assert second.get_scale() == first.get_scale()
        assert second.state_dict() == first.state_dict()


__all__ = ["PrecisionConformance"]
