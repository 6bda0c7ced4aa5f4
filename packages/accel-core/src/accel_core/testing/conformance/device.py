"""What every implementation of `Device` must do."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch

from accel_core.enums import DistributedType
from accel_core.protocols import Device, DeviceMemory, DeviceRNG, Support

from .base import Conformance

if TYPE_CHECKING:
    from accel_core.testing.pool import WorkerPool

CAPABILITIES = ("fp16", "bf16", "fp8", "float64", "pin_memory", "scaler")
COMPUTES = {"fp16": torch.float16, "bf16": torch.bfloat16, "float64": torch.float64}


class DeviceConformance(Conformance):
    """Override ``device``; name in ``vendor_modules`` what may be imported only where the hardware is.

    Where the hardware is missing, the tests that need it skip with the device's own reason.
    """

    vendor_modules: ClassVar[tuple[str, ...]] = ()

    @pytest.fixture
    def device(self) -> Device:
        """Return the device, as its entry point's factory does."""
        raise NotImplementedError

    @pytest.fixture
    def present(self, device: Device) -> Iterator[Device]:
        """Return the device where it is available; restores its generator."""
        answer = device.available()
        if not answer:
            pytest.skip(answer.reason)
        state = device.rng.get_state()
        yield device
        device.rng.set_state(state)

    def test_it_is_a_device(self, device: Device) -> None:
        """Its parts and labels are there."""
        assert isinstance(device, Device)
        assert isinstance(device.rng, DeviceRNG)
        assert isinstance(device.memory, DeviceMemory)
        assert re.fullmatch(r"[a-z]+", device.name)
        assert device.distributed_label in {str(getattr(item, "value", item)) for item in DistributedType}

    def test_available_answers_with_a_reason(self, device: Device) -> None:
        """It never raises; a no says why; asked twice, it says the same."""
        answer = device.available()
        assert isinstance(answer, Support)
        assert answer.ok or answer.reason.strip(), "a no without reason"
        assert device.available() == answer

    def test_nothing_of_the_vendor_is_imported_unless_available(
        self, pool: WorkerPool, device: Device
    ) -> None:
        """Creating it imports no vendor package; asking does only where the answer is yes."""
        cls = type(device)
        if "<locals>" in cls.__qualname__:
            pytest.skip("the class of the device cannot be imported by name")
        [(created, asked, ok)] = pool.run(1, imported_by, cls, self.vendor_modules)
        assert not created, "imported when the device was created"
        assert ok or not asked, "imported although the device is not available"

    def test_unknown_capability_is_no_with_reason(self, device: Device) -> None:
        """A new capability never reads as a yes, available or not."""
        answer = device.supports("no-such-capability")
        assert not answer.ok
        assert answer.reason.strip(), "a no without reason"

    def test_count_is_at_least_one(self, present: Device) -> None:
        """An available device is there."""
        assert present.count() >= 1

    def test_select_returns_a_torch_device(self, present: Device) -> None:
        """It is of the right type, and tensors can be made on it."""
        chosen = present.select(0)
        assert isinstance(chosen, torch.device)
        assert chosen.type == present.name
        assert torch.ones(2, device=chosen).sum().item() == 2
        present.synchronize()

    def test_backends_are_names(self, present: Device) -> None:
        """Best first, each once."""
        found = present.backends()
        assert isinstance(found, tuple)
        assert all(isinstance(name, str) and name for name in found)
        assert len(set(found)) == len(found)

    def test_generator_round_trip(self, present: Device) -> None:
        """State restored gives the same numbers, bit by bit."""
        place = present.select(0)
        state = present.rng.get_state()
        assert state.dtype == torch.uint8
        assert state.device.type == "cpu"
        first = torch.rand(5, device=place)
        assert not torch.equal(torch.rand(5, device=place), first)
        present.rng.set_state(state)
        assert torch.equal(torch.rand(5, device=place), first)

    def test_seed_decides_the_numbers(self, present: Device) -> None:
        """Same seed, same numbers; another seed, others."""
        place = present.select(0)
        drawn = []
        for seed in (7, 7, 8):
            present.rng.seed(seed)
            drawn.append(torch.rand(5, device=place))
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])

    def test_memory_is_sane(self, present: Device) -> None:
        """Numbers are bytes that fit into each other."""
        present.memory.reset_peak()
        info = present.memory.info()
        present.memory.empty_cache()
        assert info.total > 0
        assert 0 <= info.free <= info.total
        assert 0 <= info.allocated <= info.total
        assert info.peak >= 0

    @pytest.mark.parametrize("capability", CAPABILITIES)
    def test_capability_is_honest(self, present: Device, capability: str) -> None:
        """A yes holds when tried; a no says why."""
        answer = present.supports(capability)
        assert isinstance(answer, Support)
        assert answer.ok or answer.reason.strip(), "a no without reason"
        if not answer.ok:
            return
        place = present.select(0)
        if capability in COMPUTES:
            value = torch.ones(8, 8, device=place, dtype=COMPUTES[capability])
            assert (value @ value)[0, 0].item() == 8
        elif capability == "pin_memory":
            assert torch.ones(2).pin_memory().is_pinned()


def imported_by(factory: type[Device], vendor: tuple[str, ...]) -> tuple[list[str], list[str], bool]:
    """Return what of the vendor is imported after creating a device, and after asking it; and its answer."""

    def present() -> list[str]:
        return sorted(name for name in sys.modules if name.startswith(vendor)) if vendor else []

    before = set(present())
    device = factory()
    created = [name for name in present() if name not in before]
    answer = device.available()
    return created, [name for name in present() if name not in before], answer.ok


__all__ = ["DeviceConformance"]
