"""A stand-in for an accelerator: torch device ``standin``, two of them, with a limit of memory each.

Needs torch and g++ (or what ``CXX`` names), and is built on first use. The fixture ``standin`` of this
module runs functions where it is loaded; loading it cannot be undone, so that is in processes of its own::

    from accel_core.testing.standin.fixture import standin  # in conftest.py or the test module

    def test_it(standin):
        def run():
            torch.standin.set_limit(2**20)
            return torch.ones(3, device="standin:1").device.type
        assert standin.run(1, run) == ["standin"]
"""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from .building import build as build
    from .building import obstacle as obstacle
    from .loading import load as load

_NAMES = {"build": ".building", "load": ".loading", "obstacle": ".building"}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
