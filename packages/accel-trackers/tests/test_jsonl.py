"""What was logged is read back from the file, exactly."""

import dataclasses
import enum
import json
import math
import pathlib
import signal
import string
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accel_core.errors import CheckpointError, ConfigError, DataError, StateError
from accel_core.logging import RankInfo, set_rank_source
from accel_core.protocols.tracker import Tracker
from accel_trackers import JSONLinesTracker, read_run


@pytest.fixture
def start(tmp_path):
    opened = []

    def begin(run_id="one", **kwargs):
        tracker = JSONLinesTracker("digits", tmp_path, run_id=run_id, **kwargs)
        tracker.start()
        opened.append(tracker)
        return tracker

    yield begin
    for tracker in opened:
        tracker.finish()


def test_it_satisfies_the_protocol(tmp_path):
    assert isinstance(JSONLinesTracker("digits", tmp_path), Tracker)


def test_a_run_is_read_back(start, tmp_path):
    tracker = start()
    tracker.store_init_configuration({"lr": 0.1, "layers": [1, 2], "name": "é\n"})
    tracker.log({"loss": 1.5, "phase": "train"}, step=1)
    tracker.log({"loss": 0.5}, step=2)
    tracker.log({"note": "no step"})
    tracker.log_table("confusion", columns=["a", "b"], data=[[1, 2], [3, 4]], step=2)
    tracker.finish()
    run = read_run(tmp_path / "digits" / "one.jsonl")
    assert (run.run_id, run.run_name, run.finished) == ("one", "digits", True)
    assert run.config == {"lr": 0.1, "layers": [1, 2], "name": "é\n"}
    assert run.series("loss") == [(1, 1.5), (2, 0.5)]
    assert run.series("note") == [(None, "no step")]
    assert run.tables[0]["data"] == [[1, 2], [3, 4]]
    assert tracker.watermark == 2


def test_every_line_is_strict_json_and_one_call_is_one_line(start):
    tracker = start()
    tracker.log({"loss": math.nan, "text": "two\nlines"}, step=1)
    lines = tracker.path.read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["kind"] for line in lines] == ["run", "log"]


def test_lines_can_be_read_while_the_run_goes_on(start):
    tracker = start()
    tracker.log({"loss": 1.0}, step=1)
    assert read_run(tracker.path).series("loss") == [(1, 1.0)]


def test_numbers_that_json_lacks_come_back(start):
    tracker = start()
    tracker.log({"nan": math.nan, "up": math.inf, "down": -math.inf, "word": "nan"}, step=0)
    values = read_run(tracker.path).rows[0].values
    assert math.isnan(values["nan"])
    assert (values["up"], values["down"], values["word"]) == (math.inf, -math.inf, "nan")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_letters), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.text(string.printable), json_values, max_size=4))
def test_whatever_json_can_hold_comes_back_equal(start, values):
    tracker = start(run_id=None)
    tracker.log(values, step=7)
    row = read_run(tracker.path).rows[0]
    assert (row.step, row.values) == (7, values)
    tracker.finish()


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int


class Scalar:
    """As every tensor library's scalar: known by its method, not by its class."""

    def item(self):
        return 2.5


def test_values_of_other_kinds_take_their_faithful_form(start):
    tracker = start()
    tracker.store_init_configuration(
        {
            "enum": Colour.RED,
            "path": pathlib.PurePosixPath("a/b"),
            "data": Point(3),
            "pair": (1, 2),
            "item": Scalar(),
        }
    )
    assert read_run(tracker.path).config == {
        "enum": "red",
        "path": "a/b",
        "data": {"x": 3},
        "pair": [1, 2],
        "item": 2.5,
    }


def test_numpy_and_torch_values(start):
    np = pytest.importorskip("numpy")
    torch = pytest.importorskip("torch")
    tracker = start()
    tracker.log(
        {
            "np": np.float32(0.5),
            "int": np.int64(3),
            "array": np.arange(3),
            "loss": torch.tensor(0.25, requires_grad=True),
            "bf16": torch.tensor(1.5, dtype=torch.bfloat16),
            "vector": torch.tensor([1, 2]),
        },
        step=torch.tensor(4),
    )
    row = read_run(tracker.path).rows[0]
    assert row.step == 4
    assert row.values == {
        "np": 0.5,
        "int": 3,
        "array": [0, 1, 2],
        "loss": 0.25,
        "bf16": 1.5,
        "vector": [1, 2],
    }


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"f": print}, "A builtin_function_or_method cannot be logged"),
        ({"deep": [{"x": {1, 2}}]}, r"values\['deep'\]\[0\]\['x'\]"),
        ({1: "a"}, "The key 1 cannot be logged"),
        ({"a": {"$float": "nan"}}, "'\\$float' is taken"),
    ],
)
def test_what_json_cannot_hold_is_refused_and_nothing_is_written(start, values, text):
    tracker = start()
    before = tracker.path.read_bytes()
    with pytest.raises(DataError, match=text):
        tracker.log(values, step=1)
    assert tracker.path.read_bytes() == before


def test_a_run_continues_and_holds_each_value_once(start):
    first = start()
    for step in range(1, 6):
        first.log({"loss": 1.0 / step}, step=step)
    first.finish()
    # The checkpoint is from step 3; the log has gone further. Evaluation at 5 had not been stored.
    second = start()
    assert second.watermark == 5
    for step in range(4, 8):
        second.log({"loss": 1.0 / step}, step=step)
    second.log({"accuracy": 0.9}, step=5)
    second.finish()
    run = read_run(second.path)
    assert run.series("loss") == [(step, 1.0 / step) for step in range(1, 8)]
    assert run.series("accuracy") == [(5, 0.9)]
    assert second.skipped == 2
    assert json.loads(second.path.read_text().splitlines()[-1])["skipped"] == 2


def test_a_step_can_be_logged_in_parts_and_repeated_within_one_run(start):
    tracker = start()
    tracker.log({"a": 1}, step=1)
    tracker.log({"b": 2}, step=1)
    tracker.log({"a": 3}, step=1)
    assert read_run(tracker.path).series("a") == [(1, 1), (1, 3)]


def test_without_a_run_id_every_run_is_new(start):
    assert start(run_id=None).path != start(run_id=None).path


_WRITER = """
import sys
from accel_trackers import JSONLinesTracker
tracker = JSONLinesTracker("digits", sys.argv[1], run_id="killed", fsync=True)
tracker.start()
for step in range(10**9):
    tracker.log({"loss": 1.0}, step=step)
"""


def test_a_killed_run_keeps_every_line_and_goes_on(start, tmp_path):
    path = tmp_path / "digits" / "killed.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)])
    try:
        while not path.exists() or path.read_bytes().count(b"\n") < 20:
            assert writer.poll() is None
            time.sleep(0.01)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    steps = [row.step for row in read_run(path).rows]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 19
    resumed = start(run_id="killed")
    assert resumed.watermark == steps[-1]


def test_a_torn_last_line_is_removed_on_resume(start):
    tracker = start()
    tracker.log({"loss": 1.0}, step=1)
    tracker.finish()
    with tracker.path.open("ab") as file:
        file.write(b'{"kind":"log","step":2,"val')
    assert read_run(tracker.path).series("loss") == [(1, 1.0)]
    again = start()
    again.log({"loss": 0.5}, step=2)
    assert read_run(again.path).series("loss") == [(1, 1.0), (2, 0.5)]


@pytest.mark.parametrize(
    "line", [b"garbage\n", b"[]\n", b'{"kind":"log"}\n', b'{"kind":"run","format":99}\n']
)
def test_a_file_that_is_no_run_is_not_appended_to(tmp_path, line):
    path = tmp_path / "digits" / "one.jsonl"
    path.parent.mkdir()
    path.write_bytes(line)
    with pytest.raises(CheckpointError, match="Line 1 is not a line of a JSON Lines run"):
        JSONLinesTracker("digits", tmp_path, run_id="one").start()
    assert path.read_bytes() == line


def test_other_ranks_write_nothing(tmp_path):
    set_rank_source(lambda: RankInfo(rank=1, world_size=2))
    try:
        tracker = JSONLinesTracker("digits", tmp_path, run_id="one")
        tracker.start()
        tracker.log({"loss": 1.0}, step=1)
        tracker.finish()
    finally:
        set_rank_source(None)
    assert list(tmp_path.iterdir()) == []


def test_logging_before_start_and_after_finish_is_an_error(tmp_path, start):
    tracker = JSONLinesTracker("digits", tmp_path)
    with pytest.raises(StateError, match="is not started"):
        tracker.log({"loss": 1.0})
    done = start()
    with pytest.raises(StateError, match="is started already"):
        done.start()
    done.finish()
    done.finish()
    with pytest.raises(StateError, match="is not started"):
        done.log({"loss": 1.0})


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="run_name"):
        JSONLinesTracker(name, tmp_path)
    with pytest.raises(ConfigError, match="run_id"):
        JSONLinesTracker("digits", tmp_path, run_id=name)


def test_a_table_needs_columns_and_data(start):
    with pytest.raises(ConfigError, match="both are needed"):
        start().log_table("t", columns=["a"])
