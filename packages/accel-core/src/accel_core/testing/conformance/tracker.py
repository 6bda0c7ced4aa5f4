"""What every implementation of `Tracker` must do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from accel_core.errors import AccelError
from accel_core.protocols import Tracker

from .base import Conformance, fresh_python, importable

Rows = Sequence[tuple[int | None, Mapping[str, Any]]]


class TrackerConformance(Conformance):
    """Override ``tracker`` with one that is not started, offline, writing below ``tmp_path``.

    Override ``read_back`` to prove what was stored: it is called after ``finish``. ``library`` is the
    module that only ``start`` may import. ``ignores_early_log``: what is logged before ``start`` is
    dropped, as documented, and not an error.
    """

    library: ClassVar[str | None] = None
    ignores_early_log: ClassVar[bool] = False

    @pytest.fixture
    def tracker(self) -> Tracker:
        """Return a tracker that is not started."""
        raise NotImplementedError

    def read_back(self, tracker: Tracker) -> Rows | None:
        """Return ``(step, values)`` of every ``log``, as the library wrote them; None where it cannot."""
        return None

    def test_it_is_a_tracker(self, tracker: Tracker) -> None:
        """Name and flags are there."""
        assert not isinstance(tracker, type)
        for name in ("start", "store_init_configuration", "log", "log_images", "log_table", "finish"):
            assert callable(getattr(tracker, name)), name
        assert tracker.name
        assert isinstance(tracker.requires_logging_directory, bool)
        assert isinstance(tracker.main_process_only, bool)

    def test_only_start_imports_the_library(self, tracker: Tracker) -> None:
        """Neither torch nor the library is imported with the tracker's class."""
        if not importable(tracker):
            pytest.skip("the class of the tracker cannot be imported by name")
        done = fresh_python(tracker, "print(*sys.modules)")
        for module in filter(None, ("torch", self.library)):
            assert module not in done.stdout.split(), f"{module} is imported with the class"

    def test_start_log_finish(self, tracker: Tracker) -> None:
        """Values come back in order, with their steps, None where none was given."""
        tracker.start()
        tracker.store_init_configuration({"lr": 0.1, "name": "grüße", "layers": 3, "bias": True})
        tracker.log({"loss": 2.0, "note": "first"}, step=0)
        tracker.log({"loss": 1.5}, step=5)
        tracker.log({"accuracy": 0.25})
        tracker.finish()
        rows = self.read_back(tracker)
        if rows is None:
            return
        assert [values["loss"] for _, values in rows if "loss" in values] == [2.0, 1.5]
        assert [step for step, values in rows if "loss" in values] == [0, 5]
        assert [values["accuracy"] for _, values in rows if "accuracy" in values] == [0.25]

    def test_log_before_start(self, tracker: Tracker) -> None:
        """It is a clear error, or dropped where the tracker says so."""
        if not self.ignores_early_log:
            with pytest.raises(AccelError, match="start"):
                tracker.log({"loss": 1.0}, step=0)
            return
        tracker.log({"early": 1.0}, step=0)
        tracker.start()
        tracker.log({"loss": 1.0}, step=1)
        tracker.finish()
        rows = self.read_back(tracker)
        assert rows is None or not any("early" in values for _, values in rows)

    def test_finish_without_start_and_twice(self, tracker: Tracker) -> None:
        """A run that failed early can be closed, and closing twice is harmless."""
        tracker.finish()
        tracker.start()
        tracker.finish()
        tracker.finish()

    @pytest.mark.parametrize("kind", ["numpy", "torch"])
    def test_scalars_of_array_libraries(self, tracker: Tracker, kind: str) -> None:
        """Numbers of numpy and torch are stored as numbers."""
        library = pytest.importorskip(kind, exc_type=ImportError)
        value = library.float32(1.5) if kind == "numpy" else library.tensor(1.5)
        tracker.start()
        tracker.log({"loss": value}, step=0)
        tracker.finish()
        rows = self.read_back(tracker)
        assert rows is None or [float(values["loss"]) for _, values in rows if "loss" in values] == [1.5]

    def test_values_are_not_changed(self, tracker: Tracker) -> None:
        """The caller's mappings are left alone."""
        values: dict[str, Any] = {"loss": 1.0, "nested": {"a": 1}}
        configuration = {"lr": 0.1, "nested": {"a": [1, 2]}}
        tracker.start()
        tracker.store_init_configuration(configuration)
        tracker.log({"loss": values["loss"]}, step=0)
        tracker.finish()
        assert values == {"loss": 1.0, "nested": {"a": 1}}
        assert configuration == {"lr": 0.1, "nested": {"a": [1, 2]}}

    def test_tables(self, tracker: Tracker) -> None:
        """A table is stored, or refused with an error that says so."""
        tracker.start()
        try:
            tracker.log_table("answers", columns=["question", "answer"], data=[["why", "because"]], step=0)
        except (AccelError, NotImplementedError) as error:
            if not str(error):
                raise
        finally:
            tracker.finish()


__all__ = ["TrackerConformance"]
