"""Our trackers do what every tracker must."""

import pytest

from accel_core.testing.conformance import TrackerConformance
from accel_trackers import JSONLinesTracker, NullTracker, read_run


class TestJSONLines(TrackerConformance):
    @pytest.fixture
    def tracker(self, tmp_path):
        return JSONLinesTracker("digits", tmp_path)

    def read_back(self, tracker):
        return [(row.step, row.values) for row in read_run(tracker.path).rows]


class TestNull(TrackerConformance):
    ignores_early_log = True

    @pytest.fixture
    def tracker(self):
        return NullTracker()
