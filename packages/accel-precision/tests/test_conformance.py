"""Every policy passes the suite that every policy must pass."""

import pytest

from accel_core import plugins
from accel_core.testing.conformance import PrecisionConformance

pytestmark = pytest.mark.cpu


class TestFullPrecision(PrecisionConformance):
    @pytest.fixture
    def factory(self):
        return plugins.find(plugins.PRECISIONS, "no")


class TestBFloat16(PrecisionConformance):
    @pytest.fixture
    def factory(self):
        return plugins.find(plugins.PRECISIONS, "bf16")


class TestFloat16(PrecisionConformance):
    @pytest.fixture
    def factory(self):
        return plugins.find(plugins.PRECISIONS, "fp16")
