"""One suite per protocol: subclass it in a test module, override its fixture, and run pytest.

::

    from accel_core.testing.conformance import DeviceConformance

    class TestMyDevice(DeviceConformance):
        @pytest.fixture
        def device(self):
            return MyDevice()

The suites need ``pytest -p accel_core.testing.plugin``. A standard test that cannot hold is
overridden with ``@pytest.mark.xfail(reason=...)`` on top; overriding or dropping one in any other
way fails ``test_no_standard_test_was_overridden``.
"""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from .base import Conformance as Conformance
    from .checkpoint import CheckpointIOConformance as CheckpointIOConformance
    from .collectives import CollectivesConformance as CollectivesConformance
    from .command import CommandConformance as CommandConformance
    from .device import DeviceConformance as DeviceConformance
    from .launcher import LauncherConformance as LauncherConformance
    from .precision import PrecisionConformance as PrecisionConformance
    from .quantizer import QuantizerConformance as QuantizerConformance
    from .strategy import StrategyConformance as StrategyConformance
    from .tracker import TrackerConformance as TrackerConformance

_NAMES = {
    "CheckpointIOConformance": ".checkpoint",
    "CollectivesConformance": ".collectives",
    "CommandConformance": ".command",
    "Conformance": ".base",
    "DeviceConformance": ".device",
    "LauncherConformance": ".launcher",
    "PrecisionConformance": ".precision",
    "QuantizerConformance": ".quantizer",
    "StrategyConformance": ".strategy",
    "TrackerConformance": ".tracker",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
