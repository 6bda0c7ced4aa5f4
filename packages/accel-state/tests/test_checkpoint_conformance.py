"""The suite that every store must pass, over the store of folders, found through its entry point."""

import pytest

from accel_core import plugins
from accel_core.protocols import LonelyCollectives, StateSink, StateSource
from accel_core.testing.conformance import CheckpointIOConformance
from accel_state.checkpoint import CheckpointStore


class TestLocal(CheckpointIOConformance):
    @pytest.fixture
    def store(self):
        return plugins.find(plugins.CHECKPOINTS, "local")(LonelyCollectives())


def test_sink_and_source_are_what_the_protocols_ask_for(tmp_path):
    store = CheckpointStore()
    with store.save(tmp_path / "one") as sink:
        assert isinstance(sink, StateSink)
    assert isinstance(store.open(tmp_path / "one"), StateSource)
