"""A store of checkpoints that are committed, verified and free of pickle."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from .background import BackgroundSaver as BackgroundSaver
    from .files import Files as Files
    from .listing import Listed as Listed
    from .manifest import Entry as Entry
    from .manifest import FileRecord as FileRecord
    from .manifest import Manifest as Manifest
    from .manifest import TensorRecord as TensorRecord
    from .remote.store import RemoteStore as RemoteStore
    from .resolve import child as child
    from .resolve import is_uri as is_uri
    from .resolve import store_for as store_for
    from .sink import CheckpointSink as CheckpointSink
    from .snapshot import SnapshotSink as SnapshotSink
    from .source import CheckpointSource as CheckpointSource
    from .store import CheckpointStore as CheckpointStore

_NAMES = {
    "BackgroundSaver": ".background",
    "CheckpointSink": ".sink",
    "CheckpointSource": ".source",
    "CheckpointStore": ".store",
    "Entry": ".manifest",
    "FileRecord": ".manifest",
    "Files": ".files",
    "Listed": ".listing",
    "Manifest": ".manifest",
    "RemoteStore": ".remote.store",
    "SnapshotSink": ".snapshot",
    "TensorRecord": ".manifest",
    "child": ".resolve",
    "is_uri": ".resolve",
    "store_for": ".resolve",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
