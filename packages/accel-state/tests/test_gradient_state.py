"""`GradientState`: the documented view follows its window and the running loaders."""

from dataclasses import dataclass

import pytest

from accel_core.errors import ConfigError
from accel_core.window import GradientWindow, LoaderCursor
from accel_state import GradientState


@dataclass
class Plugin:
    num_steps: int | None = 4
    adjust_scheduler: bool = False
    sync_with_dataloader: bool = False
    sync_each_batch: bool = True


@pytest.fixture(autouse=True)
def fresh():
    yield
    GradientState._reset_state()


def test_without_settings():
    state = GradientState()
    assert (state.num_steps, state.adjust_scheduler, state.sync_with_dataloader) == (1, True, True)
    assert state.sync_gradients
    assert (state.active_dataloader, state.in_dataloader, state.remainder) == (None, False, -1)
    assert not state.end_of_dataloader
    assert not state.is_xla_gradients_synced
    assert state.dataloader_references == []


def test_settings_come_from_the_plugin_and_are_shared():
    state = GradientState(Plugin())
    assert state.plugin_kwargs == {
        "num_steps": 4,
        "adjust_scheduler": False,
        "sync_with_dataloader": False,
        "sync_each_batch": True,
    }
    assert GradientState() == state
    assert GradientState().window is state.window


def test_a_window_can_be_given_and_the_latest_is_shown():
    first = GradientState(Plugin())
    window = GradientWindow(2)
    second = GradientState(window=window)
    assert second.window is window
    assert GradientState().window is window
    assert second.initialized
    assert not first.initialized
    assert first.num_steps == 4


def test_it_follows_the_window():
    state = GradientState(Plugin(num_steps=2))
    assert [state.window.advance() or state.window.leave() for _ in range(1)] == [None]
    assert not state.sync_gradients
    state.window.advance()
    assert state.sync_gradients
    state.sync_gradients = False
    assert not state.window.sync_gradients
    state.num_steps = 3
    assert state.window.num_steps == 3
    with pytest.raises(ConfigError, match="num_steps=0"):
        state.num_steps = 0


def test_it_follows_nested_loaders():
    state = GradientState()
    outer, inner = LoaderCursor("train"), LoaderCursor("eval")
    state.window.push(outer)
    state.window.push(inner)
    inner.end, inner.valid = True, 5
    assert state.dataloader_references == ["train", "eval"]
    assert (state.active_dataloader, state.end_of_dataloader, state.remainder) == ("eval", True, 5)
    state.window.remove(inner)
    assert (state.active_dataloader, state.end_of_dataloader, state.remainder) == ("train", False, 0)
    assert state.in_dataloader
