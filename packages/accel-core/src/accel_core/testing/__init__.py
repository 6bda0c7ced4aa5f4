"""What tests of accel and of its plug-ins are made of: worker pool, pytest plug-in, conformance suites.

Install with ``pip install accel-core[testing]``. ``pytest -p accel_core.testing.plugin`` brings the
fixtures ``pool``, ``free_port`` and ``world``, the hardware markers and the leak checks.
"""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from .errors import RankStoppedError as RankStoppedError
    from .errors import RemoteError as RemoteError
    from .errors import WorkerDiedError as WorkerDiedError
    from .errors import WorkerError as WorkerError
    from .pool import WorkerPool as WorkerPool
    from .ports import free_port as free_port
    from .stores import MemorySink as MemorySink
    from .stores import MemorySource as MemorySource
    from .stores import MemoryStore as MemoryStore

_NAMES = {
    "MemorySink": ".stores",
    "MemorySource": ".stores",
    "MemoryStore": ".stores",
    "RankStoppedError": ".errors",
    "RemoteError": ".errors",
    "WorkerDiedError": ".errors",
    "WorkerError": ".errors",
    "WorkerPool": ".pool",
    "free_port": ".ports",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
