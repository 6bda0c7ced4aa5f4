"""The documented base class of experiment trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accel_core.errors import AccelError, CapabilityError

REQUIRED_ATTRIBUTES = ("name", "requires_logging_directory", "tracker")
REQUIRED_METHODS = ("store_init_configuration", "log")


class IncompleteTrackerError(AccelError, NotImplementedError):
    """Report everything that a tracker class leaves out; ``missing`` holds the names."""

    def __init__(self, owner: str, missing: Sequence[str]) -> None:
        self.missing = tuple(missing)
        super().__init__(
            f"The tracker class {owner} does not define {', '.join(missing)}",
            fix="name and requires_logging_directory are class attributes, tracker is a property",
        )


class GeneralTracker:
    """Base class of a tracker: define ``name``, ``requires_logging_directory``, ``tracker`` and two methods.

    ``_blank=True`` makes an object that takes every call and stores nothing: what a process that
    does not track is given. Raises IncompleteTrackerError for a subclass that leaves something out.
    """

    main_process_only = True
    """Whether methods under `on_main_process` run on the main process only."""

    def __init__(self, _blank: bool = False) -> None:
        self._blank = _blank
        if not _blank:
            check_tracker(self)

    def start(self) -> None:
        """Create or resume the run; the first place where the tracker's library may be imported."""

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Store the hyperparameters of the run."""

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Store numbers and strings of one step."""

    def log_images(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Store images of one step. Raises CapabilityError for a tracker that cannot."""
        self._cannot("images")

    def log_table(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        data: Sequence[Sequence[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Store a table of one step. Raises CapabilityError for a tracker that cannot."""
        self._cannot("tables")

    def finish(self) -> None:
        """Flush and close the run."""

    def _cannot(self, what: str) -> None:
        # A subclass may have set up its run without calling our constructor.
        if not getattr(self, "_blank", False):
            raise CapabilityError(
                f"The tracker {getattr(self, 'name', type(self).__name__)!r} does not store {what}",
                fix=f"use the object under its 'tracker' property, or a tracker that stores {what}",
            )


def check_tracker(tracker: object) -> None:
    """Raise IncompleteTrackerError with everything that ``tracker`` leaves out."""
    cls = type(tracker)
    own = getattr(tracker, "__dict__", {})
    # Asked of the class: the value of the property `tracker` may exist after start() only.
    missing = [name for name in REQUIRED_ATTRIBUTES if name not in own and not hasattr(cls, name)]
    for name in REQUIRED_METHODS:
        method = getattr(cls, name, None)
        if method is None or method is getattr(GeneralTracker, name):
            missing.append(f"{name}()")
    if missing:
        raise IncompleteTrackerError(cls.__name__, missing)


__all__ = ["GeneralTracker", "IncompleteTrackerError", "check_tracker"]
