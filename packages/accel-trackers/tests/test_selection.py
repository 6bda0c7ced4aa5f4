"""What ``log_with`` may be."""

import logging

import pytest

from accel_core.enums import LoggerType
from accel_core.errors import CapabilityError, ConfigError, UnknownNameError
from accel_trackers import GeneralTracker, IncompleteTrackerError, JSONLinesTracker, filter_trackers


class Own(GeneralTracker):
    name = "own"
    requires_logging_directory = False
    tracker = None

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **kwargs):
        pass


def test_none_is_no_tracker():
    assert filter_trackers(None) == []
    assert filter_trackers([]) == []


@pytest.mark.parametrize("log_with", ["jsonl", "JSONL", ["jsonl", "jsonl"]], ids=["lower", "upper", "twice"])
def test_a_name_gives_its_class_once(tmp_path, log_with):
    assert filter_trackers(log_with, tmp_path) == [JSONLinesTracker]


@pytest.mark.parametrize("log_with", ["all", LoggerType.ALL, ["all", "jsonl"]], ids=["text", "enum", "list"])
def test_all_gives_what_is_installed(tmp_path, log_with):
    assert JSONLinesTracker in filter_trackers(log_with, tmp_path)


def test_instances_are_kept_and_go_first(tmp_path):
    own = Own()
    assert filter_trackers([own, "jsonl", own], tmp_path) == [own, JSONLinesTracker]


def test_an_instance_outranks_the_class_of_its_name(tmp_path):
    own = JSONLinesTracker("digits", tmp_path)
    assert filter_trackers([own, "all"], tmp_path) == [own]


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        filter_trackers("jsonk", ".")
    assert caught.value.nearest == "jsonl"


@pytest.mark.parametrize("name", ["wandb", LoggerType.TENSORBOARD])
def test_a_documented_tracker_that_is_not_here_yet_is_refused(name):
    with pytest.raises(CapabilityError, match="not available in this version"):
        filter_trackers(name, ".")


def test_a_named_tracker_without_its_folder_is_refused():
    with pytest.raises(ConfigError, match="needs a folder"):
        filter_trackers("jsonl")


def test_all_leaves_out_what_needs_a_folder_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        assert JSONLinesTracker not in filter_trackers("all")
    assert "leaves out the tracker 'jsonl'" in caplog.text


def test_a_class_is_not_an_instance(tmp_path):
    with pytest.raises(ConfigError, match="is a class"):
        filter_trackers(JSONLinesTracker, tmp_path)


def test_an_object_that_is_no_tracker_is_refused():
    with pytest.raises(IncompleteTrackerError, match="object"):
        filter_trackers(object())
