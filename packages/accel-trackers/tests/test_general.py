"""The documented base class, and who may run what."""

import pytest

from accel_core.errors import AccelError, CapabilityError, TopologyError
from accel_core.logging import RankInfo, set_rank_source
from accel_core.protocols.tracker import Tracker
from accel_trackers import (
    GeneralTracker,
    IncompleteTrackerError,
    is_main_process,
    on_main_process,
)


class Notes(GeneralTracker):
    name = "notes"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.lines = []

    @property
    def tracker(self):
        return self.lines

    @on_main_process
    def store_init_configuration(self, values):
        self.lines.append(values)

    @on_main_process
    def log(self, values, step=None, **kwargs):
        self.lines.append((step, values))
        return "stored"


class Everywhere(Notes):
    main_process_only = False


@pytest.fixture
def rank():
    """Return a function that says which rank this process is, as the process state does."""
    yield lambda number: set_rank_source(lambda: RankInfo(rank=number, world_size=4))
    set_rank_source(None)


def test_a_complete_subclass_satisfies_the_protocol():
    assert isinstance(Notes(), Tracker)


def test_everything_that_is_missing_is_named_at_once():
    class Empty(GeneralTracker):
        pass

    with pytest.raises(IncompleteTrackerError) as caught:
        Empty()
    assert caught.value.missing == (
        "name",
        "requires_logging_directory",
        "tracker",
        "store_init_configuration()",
        "log()",
    )
    assert isinstance(caught.value, AccelError)
    assert isinstance(caught.value, NotImplementedError)


def test_a_tracker_without_log_is_refused_because_it_would_lose_everything():
    class Deaf(GeneralTracker):
        name = "deaf"
        requires_logging_directory = False
        tracker = None

        def store_init_configuration(self, values):
            pass

    with pytest.raises(IncompleteTrackerError, match=r"does not define log\(\)"):
        Deaf()


def test_a_blank_tracker_takes_every_call():
    blank = GeneralTracker(_blank=True)
    blank.start()
    blank.store_init_configuration({"a": 1})
    blank.log({"loss": 1.0}, step=1, extra=2)
    blank.log_images({"x": object()})
    blank.log_table("t", columns=["a"], data=[[1]])
    blank.finish()


def test_what_a_tracker_cannot_store_is_an_error_and_not_lost():
    with pytest.raises(CapabilityError, match="'notes' does not store images"):
        Notes().log_images({"x": object()})
    with pytest.raises(CapabilityError, match="'notes' does not store tables"):
        Notes().log_table("t")


def test_methods_run_on_the_main_process_only(rank):
    tracker = Notes()
    rank(2)
    assert tracker.log({"a": 1}) is None
    assert tracker.tracker == []
    rank(0)
    assert tracker.log({"a": 1}, step=3) == "stored"
    assert tracker.tracker == [(3, {"a": 1})]


def test_a_tracker_for_every_process_runs_on_every_process(rank):
    rank(2)
    assert Everywhere().log({"a": 1}) == "stored"


@pytest.mark.parametrize(("rank", "main"), [("0", True), ("1", False)])
def test_without_a_source_the_environment_says_who_is_main(monkeypatch, rank, main):
    for name, value in {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert is_main_process() is main


def test_an_environment_that_contradicts_itself_is_an_error(monkeypatch):
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TopologyError):
        is_main_process()


def test_the_decorator_keeps_the_name_and_the_docstring():
    class Documented(Notes):
        @on_main_process
        def finish(self):
            """Close it."""

    assert (Documented.finish.__name__, Documented.finish.__doc__) == ("finish", "Close it.")
