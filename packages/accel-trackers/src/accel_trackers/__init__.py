"""Experiment trackers behind one small interface; no torch needed."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

from .__about__ import __version__ as __version__

if TYPE_CHECKING:
    from accel_core.protocols.tracker import NullTracker as NullTracker

    from .general import GeneralTracker as GeneralTracker
    from .general import IncompleteTrackerError as IncompleteTrackerError
    from .jsonl import JSONLinesTracker as JSONLinesTracker
    from .jsonl_reader import Row as Row
    from .jsonl_reader import Run as Run
    from .jsonl_reader import read_run as read_run
    from .ranks import is_main_process as is_main_process
    from .ranks import on_main_process as on_main_process
    from .selection import filter_trackers as filter_trackers

_NAMES = {
    "GeneralTracker": ".general",
    "IncompleteTrackerError": ".general",
    "JSONLinesTracker": ".jsonl",
    "NullTracker": "accel_core.protocols.tracker",
    "Row": ".jsonl_reader",
    "Run": ".jsonl_reader",
    "filter_trackers": ".selection",
    "is_main_process": ".ranks",
    "on_main_process": ".ranks",
    "read_run": ".jsonl_reader",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
