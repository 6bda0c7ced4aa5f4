"""Every kind of hardware: present or absent with its reason, found by name, and what it claims is tried."""

import subprocess
import sys

import pytest
import torch

from accel_core import plugins
from accel_core.errors import CapabilityError, UnknownNameError
from accel_core.protocols import Device, DeviceMemory, DeviceRNG
from accel_state.devices import detect, device_names, hardware_of
from accel_state.devices.base import TorchDevice, too_many

KINDS = ["cuda", "xpu", "hpu", "npu", "mlu", "musa", "sdaa", "neuron", "xla", "mps", "cpu"]
VENDORS = {
    "hpu": "habana_frameworks",
    "npu": "torch_npu",
    "mlu": "torch_mlu",
    "musa": "torch_musa",
    "sdaa": "torch_sdaa",
    "neuron": "torch_neuronx",
    "xla": "torch_xla",
}
CAPABILITIES = ["fp16", "bf16", "fp8", "float64", "pin_memory", "scaler"]


def test_all_kinds_are_offered_in_the_order_of_detection():
    assert [name for name in device_names() if name in KINDS] == KINDS
    assert device_names()[-1] == "cpu"


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_satisfies_the_protocol(name):
    device = hardware_of(name)
    assert isinstance(device, Device)
    assert isinstance(device.rng, DeviceRNG)
    assert isinstance(device.memory, DeviceMemory)
    assert device.name == name
    assert hardware_of(name) is device


@pytest.mark.parametrize("name", KINDS)
def test_availability_is_answered_with_a_reason(name):
    answer = hardware_of(name).available()
    assert bool(answer) == (answer.reason == "")
    if not answer:
        assert hardware_of(name).count() == 0
        with pytest.raises(CapabilityError, match=f"'{name}' cannot be used"):
            hardware_of(name).select(0)


@pytest.mark.parametrize(("name", "package"), VENDORS.items())
def test_a_missing_vendor_package_is_named(name, package):
    answer = hardware_of(name).available()
    if answer or package in sys.modules:
        pytest.skip("this machine has what the test needs to be absent")
    assert repr(package) in answer.reason


def test_asking_every_kind_imports_no_vendor_package():
    """In a fresh interpreter, because this one may have imported anything."""
    code = (
        "import sys\n"
        "from accel_core import plugins\n"
        "for name in plugins.names(plugins.DEVICES):\n"
        "    plugins.find(plugins.DEVICES, name)()\n"
        f"vendors = {sorted(VENDORS.values())!r}\n"
        "print([vendor for vendor in vendors if vendor in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_vendor_package_that_does_not_load_is_reported_not_raised(tmp_path, monkeypatch):
    (tmp_path / "broken_vendor.py").write_text("raise OSError('libvendor.so: not found')\n")
    monkeypatch.syspath_prepend(tmp_path)

    class Broken(TorchDevice):
        name = "broken"
        title = "Broken card"
        package = "broken_vendor"

    answer = Broken().available()
    assert not answer
    assert "installed but does not load: libvendor.so" in answer.reason


def test_a_vendor_package_that_adds_no_namespace(tmp_path, monkeypatch):
    (tmp_path / "empty_vendor.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    class Empty(TorchDevice):
        name = "emptyvendor"
        title = "Empty card"
        package = "empty_vendor"

    assert "has no torch.emptyvendor" in Empty().available().reason
    sys.modules.pop("empty_vendor")


def test_unknown_kind_gets_the_nearest_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'cuda'"):
        hardware_of("cudaa")


def test_detection_prefers_an_accelerator():
    chosen = detect()
    others = [name for name in device_names() if name != "cpu" and hardware_of(name).available()]
    assert chosen.name == (others[0] if others else "cpu")


@pytest.mark.parametrize("capability", [*CAPABILITIES, "sharing", "distributed"])
def test_the_cpus_answers_have_reasons(capability):
    answer = hardware_of("cpu").supports(capability)
    assert bool(answer) == (answer.reason == "")


@pytest.mark.parametrize("name", KINDS)
def test_an_unknown_capability_is_never_a_yes(name):
    answer = hardware_of(name).supports("telepathy")
    assert not answer
    assert "telepathy" in answer.reason


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_cpu_trains_in_the_precision_it_claims(dtype):
    assert hardware_of("cpu").supports({torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype])
    model = torch.nn.Linear(4, 4)
    with torch.autocast("cpu", dtype=dtype):
        out = model(torch.ones(2, 4))
    assert out.dtype is dtype
    out.float().sum().backward()
    assert model.weight.grad is not None


def test_the_cpu_scales_gradients_as_it_claims():
    assert hardware_of("cpu").supports("scaler")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler.scale(weight.sum()).backward()
    assert weight.grad.item() == 4.0
    scaler.step(optimizer)
    assert weight.item() == 1.0


def test_the_cpu_cannot_pin_as_it_says():
    if torch.accelerator.is_available():
        pytest.skip("with an accelerator memory can be pinned")
    assert not hardware_of("cpu").supports("pin_memory")


def test_cpu_memory_is_that_of_the_machine():
    info = hardware_of("cpu").memory.info()
    assert 0 < info.free <= info.total
    assert 0 < info.allocated <= info.peak
    big = bytearray(64 << 20)
    big[::4096] = b"x" * len(big[::4096])
    # Touching 64 MiB must show; the rest of the process may give a little back in between.
    assert hardware_of("cpu").memory.info().allocated > info.allocated + (32 << 20)


def test_cpu_generator_round_trip():
    rng = hardware_of("cpu").rng
    before = rng.get_state()
    rng.seed(11)
    state = rng.get_state()
    drawn = torch.rand(5)
    rng.set_state(state)
    assert torch.rand(5).equal(drawn)
    assert state.dtype is torch.uint8
    rng.set_state(before)


def test_too_many_processes_names_counts_and_variable(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    error = too_many("cuda", 4, 2, "CUDA_VISIBLE_DEVICES")
    assert "4 processes on this machine need a cuda device each, but 2 are visible" in str(error)
    assert error.where == "CUDA_VISIBLE_DEVICES='0,1'"


def test_third_party_kinds_come_before_the_cpu(monkeypatch):
    offered = {**plugins.offered(plugins.DEVICES), "quantum": None}
    monkeypatch.setattr(plugins, "offered", lambda group: offered)
    assert device_names()[-2:] == ["quantum", "cpu"]


@pytest.mark.gpu
def test_cuda_selects_measures_and_reseeds():
    device = hardware_of("cuda")
    assert device.select(0) == torch.device("cuda", 0)
    device.rng.seed(5)
    state = device.rng.get_state()
    drawn = torch.rand(4, device="cuda")
    device.rng.set_state(state)
    assert torch.rand(4, device="cuda").equal(drawn)
    held = torch.empty(1 << 20, device="cuda")
    info = device.memory.info(0)
    assert info.allocated >= held.numel() * 4
    assert info.free < info.total
    assert "nccl" in device.backends()
    device.synchronize()
    with pytest.raises(CapabilityError, match="visible"):
        device.select(device.count())


@pytest.mark.mps
def test_mps_selects_and_reseeds():
    device = hardware_of("mps")
    assert device.select(0).type == "mps"
    device.rng.seed(5)
    state = device.rng.get_state()
    drawn = torch.rand(4, device="mps")
    device.rng.set_state(state)
    assert torch.rand(4, device="mps").equal(drawn)
    assert device.backends() == ()
