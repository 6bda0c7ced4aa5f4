"""`AcceleratorState`: chosen once, another choice is an error."""

import pytest

from accel_core.enums import DistributedType
from accel_core.errors import StateError, UnknownNameError
from accel_state import AcceleratorState, PartialState, process


@pytest.fixture(autouse=True)
def fresh():
    yield
    process.reset()


class Plugin:
    fsdp_version = 2


def test_default_and_environment(monkeypatch):
    assert AcceleratorState().mixed_precision == "no"
    process.reset()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "BF16")
    assert AcceleratorState().mixed_precision == "bf16"
    assert "Mixed precision type: bf16" in repr(AcceleratorState())


def test_code_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert AcceleratorState(mixed_precision="bf16").mixed_precision == "bf16"
    assert AcceleratorState().mixed_precision == "bf16"


def test_another_precision_is_refused():
    AcceleratorState(mixed_precision="bf16")
    AcceleratorState(mixed_precision="bf16")
    with pytest.raises(StateError, match="mixed_precision: first 'bf16', now 'no'"):
        AcceleratorState(mixed_precision="no")


def test_unknown_precision_leaves_nothing_behind():
    with pytest.raises(UnknownNameError, match="Did you mean 'fp16'"):
        AcceleratorState(mixed_precision="pf16")
    assert AcceleratorState(mixed_precision="fp16").mixed_precision == "fp16"


def test_another_plugin_is_refused():
    plugin = Plugin()
    state = AcceleratorState(fsdp_plugin=plugin)
    assert state.fsdp_plugin is plugin
    assert state.is_fsdp2
    assert state.distributed_type is DistributedType.FSDP
    assert AcceleratorState(fsdp_plugin=plugin).initialized
    with pytest.raises(StateError, match="fsdp_plugin"):
        AcceleratorState(fsdp_plugin=Plugin())


def test_reset_is_for_the_choices_or_for_everything():
    state = AcceleratorState(mixed_precision="bf16")
    AcceleratorState._reset_state()
    assert process.current() is state.process_state
    assert not state.initialized
    assert AcceleratorState(mixed_precision="no").mixed_precision == "no"
    AcceleratorState._reset_state(reset_partial_state=True)
    assert process.current() is None


def test_a_new_process_state_makes_new_choices():
    AcceleratorState(mixed_precision="bf16")
    PartialState._reset_state()
    assert AcceleratorState(mixed_precision="no").mixed_precision == "no"


def test_deepspeed_plugins_by_name():
    one, two = object(), object()
    state = AcceleratorState(deepspeed_plugin={"student": one, "teacher": two})
    assert state.distributed_type is DistributedType.DEEPSPEED
    assert state.deepspeed_plugin is one
    state.select_deepspeed_plugin("teacher")
    assert AcceleratorState().deepspeed_plugin is two
    assert state.get_deepspeed_plugin("student") is one
    with pytest.raises(UnknownNameError, match="Did you mean 'teacher'"):
        state.select_deepspeed_plugin("techer")
    with pytest.raises(StateError, match="deepspeed_plugin"):
        AcceleratorState(deepspeed_plugin=object())


def test_no_plugins():
    state = AcceleratorState()
    assert state.deepspeed_plugin is None
    assert not state.is_fsdp2
    assert (state.dynamo_plugin, state.megatron_lm_plugin, state.parallelism_config) == (None, None, None)
