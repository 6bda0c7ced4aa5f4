"""The documented context manager."""

from types import SimpleNamespace

import pytest
import torch

from accel_core.errors import UnknownNameError
from accel_precision import get_grad_scaler
from accel_precision import get_mixed_precision_context_manager as manager

pytestmark = pytest.mark.cpu
CPU = torch.device("cpu")


def dtype_inside(context):
    a = torch.ones(2, 2)
    with context:
        return (a @ a).dtype


def test_it_does_what_it_is_asked():
    assert dtype_inside(manager()) == torch.float32
    assert dtype_inside(manager(False, mixed_precision="bf16", device=CPU)) == torch.float32
    assert dtype_inside(manager(True, mixed_precision="no", device=CPU)) == torch.float32
    assert dtype_inside(manager(True, device=CPU)) == torch.bfloat16  # torch's own choice for the CPU
    assert dtype_inside(manager(True, mixed_precision="fp16", device=CPU)) == torch.float16
    assert dtype_inside(manager(native_amp=True, mixed_precision="bf16", device=CPU)) == torch.bfloat16


def test_settings_are_passed_on():
    off = SimpleNamespace(enabled=False, cache_enabled=None)
    assert dtype_inside(manager(True, off, mixed_precision="bf16", device=CPU)) == torch.float32
    uncached = SimpleNamespace(enabled=True, cache_enabled=False)
    with manager(True, uncached, mixed_precision="bf16", device=CPU):
        assert not torch.is_autocast_cache_enabled()


def test_the_default_device_is_the_machines():
    present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    with manager(True):
        assert torch.is_autocast_enabled((present or CPU).type)


def test_a_build_for_gpus_on_a_machine_without_one_computes_on_the_cpu(monkeypatch):
    # What `pip install torch` gives on Linux answers "cuda" everywhere.
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert dtype_inside(manager(True, mixed_precision="bf16")) == torch.bfloat16
    assert get_grad_scaler().scale(torch.ones(())) == 65536.0


def test_an_unknown_precision_is_an_error():
    with pytest.raises(UnknownNameError, match="Did you mean 'bf16'"):
        manager(True, mixed_precision="bf-16")
