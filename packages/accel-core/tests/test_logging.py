import inspect
import io
import logging
import subprocess
import sys

import pytest

import accel_core.logging as rank_logging
from accel_core.errors import ConfigError
from accel_core.logging import RankFilter, RankInfo, get_logger, rank_info, set_rank_source


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """No rank source, no level and no launcher's variables; the handler of last resort as it was."""
    for name in ("ACCELERATE_LOG_LEVEL", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    level = logging.lastResort.level
    set_rank_source(None)
    yield
    set_rank_source(None)
    logging.lastResort.setLevel(level)


@pytest.fixture
def name(request):
    """A logger name that no other test uses."""
    return f"accel_core.tests.{request.node.name}"


def here():
    return inspect.currentframe().f_back.f_lineno


def at_rank(rank, world_size=4, barrier=lambda: None):
    set_rank_source(lambda: RankInfo(rank, rank, barrier, world_size))


def test_messages_are_the_main_processs_by_default(name, caplog):
    logger = get_logger(name, "INFO")
    at_rank(1)
    logger.info("hidden")
    logger.info("everywhere", main_process_only=False)
    at_rank(0)
    logger.info("main")
    assert [record.message for record in caplog.records] == ["everywhere", "main"]


@pytest.mark.parametrize(
    "method", ["debug", "info", "warning", "error", "critical", "warning_once", "exception"]
)
def test_the_record_names_the_line_of_the_caller(name, caplog, method):
    logger = get_logger(name, "DEBUG")
    getattr(logger, method)("text")
    line = here() - 1
    record = caplog.records[-1]
    assert (record.filename, record.lineno, record.funcName) == (
        "test_logging.py",
        line,
        "test_the_record_names_the_line_of_the_caller",
    )


def test_log_and_a_stacklevel_of_the_callers_own(name, caplog):
    logger = get_logger(name, "DEBUG")

    def helper():
        logger.log(logging.INFO, "from %s", "outside", stacklevel=2)

    helper()
    line = here() - 1
    assert (caplog.records[-1].lineno, caplog.records[-1].message) == (line, "from outside")
    logger.log(logging.INFO, "direct", in_order=True, main_process_only=False)
    line = here() - 1
    assert caplog.records[-1].lineno == line


def test_exceptions_stack_and_extra_work_as_in_the_standard_library(name, caplog):
    logger = get_logger(name, "INFO")
    try:
        raise ValueError("boom")
    except ValueError:
        logger.exception("failed", extra={"step": 3}, stack_info=True)
    record = caplog.records[-1]
    assert "ValueError: boom" in caplog.text
    assert record.step == 3
    assert "Stack (most recent call last)" in caplog.text


def test_records_carry_the_rank_for_formats(name):
    logger = get_logger(name, "INFO")
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("%(rank)s/%(world_size)s local %(local_rank)s: %(message)s"))
    handler.addFilter(RankFilter())
    logger.addHandler(handler)
    try:
        assert handler in logger.handlers
        at_rank(2)
        logger.warning("hello", main_process_only=False)
        logging.getLogger(name).warning("plain")
    finally:
        logger.removeHandler(handler)
    assert out.getvalue() == "2/4 local 2: hello\n2/4 local 2: plain\n"
    assert logger.handlers == []


def test_propagate_is_the_loggers(name, caplog):
    logger = get_logger(name, "INFO")
    logger.propagate = False
    assert logging.getLogger(name).propagate is False
    logger.info("nobody listens")
    assert caplog.records == []
    with pytest.raises(AttributeError, match="no_such_thing"):
        logger.no_such_thing()


def test_in_order_waits_for_each_rank_in_turn(name, caplog):
    logger = get_logger(name, "INFO")
    seen = []
    at_rank(1, 3, barrier=lambda: seen.append(len(caplog.records)))
    logger.info("mine", main_process_only=False, in_order=True)
    # Rank 0's turn comes first, then ours, then rank 2's.
    assert seen == [0, 1, 1]


def test_in_order_waits_although_the_level_hides_the_message(name, caplog):
    logger = get_logger(name, "ERROR")
    waited = []
    at_rank(1, 3, barrier=lambda: waited.append(1))
    logger.info("hidden", main_process_only=False, in_order=True)
    assert (len(waited), caplog.records) == (3, [])
    logger.info("hidden")
    assert len(waited) == 3


def test_in_order_without_state_is_plain_logging(name, caplog, monkeypatch):
    for variable, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(variable, value)
    logger = get_logger(name, "INFO")
    logger.info("mine", main_process_only=False, in_order=True)
    logger.info("hidden")
    assert [(record.message, record.rank) for record in caplog.records] == [("mine", 1)]


def test_the_rank_comes_from_the_source_then_the_environment_then_zero(monkeypatch):
    assert rank_info()[:2] == (0, 0)
    monkeypatch.setenv("RANK", "7")
    # Half a set: whoever starts the processes reports it, a logger does not.
    assert rank_info()[:2] == (0, 0)
    for variable, value in {"WORLD_SIZE": "8", "LOCAL_RANK": "7"}.items():
        monkeypatch.setenv(variable, value)
    assert rank_info()[:2] == (7, 7)
    set_rank_source(lambda: None)
    assert rank_info().rank == 7
    at_rank(3)
    assert rank_info().rank == 3


def test_a_warning_once_is_given_once_for_each_message_and_arguments(name, caplog):
    logger = get_logger(name)
    for _ in range(3):
        logger.warning_once("same %s", [1])
        logger.warning_once("same %s", [2])
    assert [record.message for record in caplog.records] == ["same [1]", "same [2]"]
    get_logger(name + ".other").warning_once("same %s", [1])
    assert len(caplog.records) == 3


def test_the_level_comes_from_the_argument_then_the_environment(name, monkeypatch):
    assert get_logger(name).getEffectiveLevel() == logging.getLogger().getEffectiveLevel()
    monkeypatch.setenv("ACCELERATE_LOG_LEVEL", "debug")
    assert get_logger(name).level == logging.DEBUG
    assert get_logger(name, "ERROR").level == logging.ERROR
    assert get_logger(name, logging.INFO).level == logging.INFO


@pytest.mark.parametrize("wrong", ["LOUD", True, 1.5])
def test_a_level_that_is_none(name, wrong):
    with pytest.raises(ConfigError, match="must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL"):
        get_logger(name, wrong)


def test_a_level_of_the_environment_that_is_none_names_the_variable(name, monkeypatch):
    monkeypatch.setenv("ACCELERATE_LOG_LEVEL", "LOUD")
    with pytest.raises(ConfigError, match="ACCELERATE_LOG_LEVEL='LOUD'"):
        get_logger(name)


def test_the_documented_example_prints_although_logging_is_not_set_up():
    code = (
        "from accel_core.logging import get_logger\n"
        "get_logger('mine', log_level='DEBUG').debug('thing_to_log')\n"
        "import logging; logging.getLogger('other').info('not asked for')\n"
        "import sys; print('torch' in sys.modules, 'yaml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stderr, done.stdout) == ("thing_to_log\n", "False False\n")


def test_it_is_an_adapter_of_the_standard_library(name):
    logger = get_logger(name)
    assert isinstance(logger, logging.LoggerAdapter)
    assert logger.name == name
    assert logger.logger is logging.getLogger(name)
    assert rank_logging.__name__ == "accel_core.logging"
