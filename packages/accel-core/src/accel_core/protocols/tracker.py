"""What accel asks of an experiment tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Tracker(Protocol):
    """One run of one experiment tracker. Only `start` may import the tracker's library."""

    name: str
    requires_logging_directory: bool
    main_process_only: bool

    @property
    def tracker(self) -> Any:
        """Return the library's own run object."""

    def start(self) -> None:
        """Create or resume the run."""

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Store the hyperparameters of the run."""

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Store numbers and strings of one step."""

    def log_images(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Store images of one step."""

    def log_table(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        data: Sequence[Sequence[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Store a table of one step."""

    def finish(self) -> None:
        """Flush and close the run."""


class NullTracker:
    """Accept everything and store nothing: what ranks that do not track are given."""

    name = "null"
    requires_logging_directory = False
    main_process_only = False

    @property
    def tracker(self) -> Any:
        """Return None."""
        return None

    def start(self) -> None:
        """Do nothing."""

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Do nothing."""

    def log_images(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Do nothing."""

    def log_table(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        data: Sequence[Sequence[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""
