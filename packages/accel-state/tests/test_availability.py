"""Questions about hardware and versions, against what torch itself says."""

import importlib.machinery
import sys
import types

import pytest
import torch

from accel_core.errors import ConfigError, UnknownNameError
from accel_state import availability, process
from accel_state.devices.choose import hardware_of

OWN = str(torch.__version__).partition("+")[0]


def test_versions_are_compared_as_numbers():
    assert availability.is_torch_version("==", OWN)
    assert availability.is_torch_version(">=", OWN)
    assert not availability.is_torch_version(">", OWN)
    assert not availability.is_torch_version("!=", OWN)
    # As text, 2.10 would come before 2.6.
    assert availability.is_torch_version(">=", "2.6")
    assert availability.is_torch_version("<", "99.0.0rc1")
    assert availability.is_torch_version("<=", " 99 ")


@pytest.mark.parametrize("version", ["", "two", "2..6", "2.6x", 2.6, None])
def test_what_is_no_version_is_refused(version):
    with pytest.raises(ConfigError, match="is no version"):
        availability.is_torch_version(">=", version)


def test_an_unknown_comparison_is_refused():
    with pytest.raises(UnknownNameError, match="Unknown comparison '=>'"):
        availability.is_torch_version("=>", "2.6")


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu", "npu", "hpu", "mlu", "musa", "sdaa"])
def test_each_kind_of_hardware_is_asked(kind):
    question = getattr(availability, f"is_{kind}_available")
    assert question() is bool(hardware_of(kind).available())


def test_cuda_and_mps_as_torch_says():
    assert availability.is_cuda_available() == torch.cuda.is_available()
    assert availability.is_mps_available() == torch.backends.mps.is_available()
    assert not availability.is_mps_available(min_version="99")
    assert availability.is_xpu_available(check_device=True) is availability.is_xpu_available()
    assert availability.is_npu_available(check_device=True) is availability.is_npu_available()


@pytest.mark.world(1)
def test_bf16_is_that_of_the_hardware_in_use(pool, world):
    def run():
        process.start(cpu=True)
        return availability.is_bf16_available(), availability.is_bf16_available(ignore_tpu=True)

    assert pool.run(world, run) == [(True, True)]


def test_xla_is_asked_for_one_kind_of_device(monkeypatch):
    assert not availability.is_torch_xla_available()
    with pytest.raises(ConfigError, match="contradicts check_is_tpu"):
        availability.is_torch_xla_available(check_is_tpu=True, check_is_gpu=True)
    # There is no torch_xla here: a package that says what its runtime would.
    package, runtime = types.ModuleType("torch_xla"), types.ModuleType("torch_xla.runtime")
    package.__spec__ = importlib.machinery.ModuleSpec("torch_xla", None)
    runtime.device_type = lambda: "TPU"
    monkeypatch.setitem(sys.modules, "torch_xla", package)
    monkeypatch.setitem(sys.modules, "torch_xla.runtime", runtime)
    assert availability.is_torch_xla_available()
    assert availability.is_torch_xla_available(check_is_tpu=True)
    assert not availability.is_torch_xla_available(check_is_gpu=True)
    assert availability.is_bf16_available(ignore_tpu=True) is False


def test_ipex_belongs_to_one_torch(monkeypatch):
    assert not availability.is_ipex_available()
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{OWN}+cpu")
    assert availability.is_ipex_available()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0.0")
    assert not availability.is_ipex_available()
