"""The suites of accel_core.testing.conformance over every device and over gloo groups."""

from typing import ClassVar

import pytest

from accel_core.protocols import Device
from accel_core.testing.conformance import CollectivesConformance, DeviceConformance
from accel_state import process
from accel_state.devices.cpu import CpuDevice
from accel_state.devices.cuda import CudaDevice
from accel_state.devices.hpu import HpuDevice
from accel_state.devices.mlu import MluDevice
from accel_state.devices.mps import MpsDevice
from accel_state.devices.musa import MusaDevice
from accel_state.devices.neuron import NeuronDevice
from accel_state.devices.npu import NpuDevice
from accel_state.devices.sdaa import SdaaDevice
from accel_state.devices.xla import XlaDevice
from accel_state.devices.xpu import XpuDevice


class OneDevice(DeviceConformance):
    __test__ = False
    made_by: ClassVar[type[Device]]

    @pytest.fixture
    def device(self):
        return self.made_by()


class TestCpu(OneDevice):
    __test__ = True
    made_by = CpuDevice


class TestCuda(OneDevice):
    __test__ = True
    made_by = CudaDevice


class TestMps(OneDevice):
    __test__ = True
    made_by = MpsDevice


class TestXpu(OneDevice):
    __test__ = True
    made_by = XpuDevice
    vendor_modules = ("oneccl_bindings_for_pytorch", "intel_extension_for_pytorch")


class TestHpu(OneDevice):
    __test__ = True
    made_by = HpuDevice
    vendor_modules = ("habana_frameworks",)


class TestNpu(OneDevice):
    __test__ = True
    made_by = NpuDevice
    vendor_modules = ("torch_npu",)


class TestMlu(OneDevice):
    __test__ = True
    made_by = MluDevice
    vendor_modules = ("torch_mlu",)


class TestMusa(OneDevice):
    __test__ = True
    made_by = MusaDevice
    vendor_modules = ("torch_musa",)


class TestSdaa(OneDevice):
    __test__ = True
    made_by = SdaaDevice
    vendor_modules = ("torch_sdaa",)


class TestNeuron(OneDevice):
    __test__ = True
    made_by = NeuronDevice
    vendor_modules = ("torch_neuronx", "torch_xla")


class TestXla(OneDevice):
    __test__ = True
    made_by = XlaDevice
    vendor_modules = ("torch_xla",)


class TestProcessCollectives(CollectivesConformance):
    """What every program gets: gloo groups, and the group of one."""

    @pytest.fixture
    def factory(self):
        return lambda: process.start(cpu=True).collectives
